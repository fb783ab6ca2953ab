"""Requests of mixed lengths, and what static batches make of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.mixed_lengths import (
    MixedRequest,
    left_padded,
    log_uniform,
    mixed_requests,
    num_batch_steps,
    num_useful_tokens,
    static_batches,
)

PROMPTS, OUTPUTS = range(32, 129), range(8, 193)

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=80)


def requests(num_output_tokens: list[int]) -> list[MixedRequest]:
    return [MixedRequest((1,), num) for num in num_output_tokens]


@given(st.integers(0, 2**32))
def test_a_seed_makes_one_workload(seed: int) -> None:
    def made() -> list[MixedRequest]:
        rng = random.Random(seed)
        return mixed_requests(rng, 5, prompt_tokens=PROMPTS, output_tokens=OUTPUTS)

    first = made()
    assert first == made()
    assert all(len(r.prompt) in PROMPTS and r.num_output_tokens in OUTPUTS for r in first)


def test_doublings_are_equally_likely() -> None:
    rng = random.Random(1)
    drawn = [log_uniform(rng, range(8, 129)) for _ in range(4000)]
    counts = [sum(low <= value < 2 * low for value in drawn) for low in (8, 16, 32, 64)]
    assert max(counts) < 1.2 * min(counts)
    assert (min(drawn), max(drawn)) == (8, 128)


BATCHES = [
    # id                outputs          size batches of         steps
    ("one full", [3, 5], 2, [[3, 5]], [5]),
    ("a smaller last", [3, 5, 2], 2, [[3, 5], [2]], [5, 2]),
    ("fewer than a batch", [7], 32, [[7]], [7]),
    ("order of arrival", [1, 9, 9, 1], 2, [[1, 9], [9, 1]], [9, 9]),
]


@pytest.mark.parametrize(
    ("outputs", "size", "want", "want_steps"), [c[1:] for c in BATCHES], ids=[c[0] for c in BATCHES]
)
def test_static_batches(
    outputs: list[int], size: int, want: list[list[int]], want_steps: list[int]
) -> None:
    batches = static_batches(requests(outputs), size)
    assert [[r.num_output_tokens for r in batch] for batch in batches] == want
    assert [num_batch_steps(batch) for batch in batches] == want_steps


@given(lengths, st.integers(1, 40))
def test_batches_lose_no_request_and_never_compute_less_than_is_useful(
    outputs: list[int], size: int
) -> None:
    asked = requests(outputs)
    batches = static_batches(asked, size)
    assert [request for batch in batches for request in batch] == asked
    num_computed = sum(len(batch) * num_batch_steps(batch) for batch in batches)
    assert num_useful_tokens(asked) == sum(outputs) <= num_computed


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=5))
def test_left_padding_aligns_the_ends(prompts: list[list[int]]) -> None:
    token_ids, mask = left_padded(prompts, 0)
    longest = max(map(len, prompts))
    for prompt, row, real in zip(prompts, token_ids, mask, strict=True):
        assert row == [0] * (longest - len(prompt)) + prompt
        assert real == [int(token_id != 0) for token_id in row]
