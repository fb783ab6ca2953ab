"""What is sampled depends on logits, parameters and key alone, and follows the distribution."""

import math
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.request import SamplingParams, StopParams
from engine.batch import SampleSpec
from engine.sampler import sample
from tests.engine.tiny import GREEDY, sample_spec


def packed(allowed: set[int], vocab_size: int = 6) -> npt.NDArray[np.uint8]:
    """A mask as grammars give it."""
    return np.packbits([i in allowed for i in range(vocab_size)], bitorder="little")


LOGITS = torch.tensor([[2.0, 1.0, 3.0, -1.0, 0.0, 2.5]])
PROBS = LOGITS[0].double().softmax(-1)
"""In falling order: token 2 0.459, 5 0.278, 0 0.169, 1 0.062, 4 0.023, 3 0.008."""
NUM_DRAWS = 4000


def draw(spec: SampleSpec, num_draws: int = NUM_DRAWS) -> Counter[int]:
    """Tokens of as many seeds, in one batch."""
    specs = [replace(spec, sampling=replace(spec.sampling, seed=seed)) for seed in range(num_draws)]
    token_ids, _ = sample(LOGITS.expand(num_draws, -1), specs)
    return Counter(token_ids)


KEPT = [
    # id              parameters                     tokens that remain
    ("all", {}, {0, 1, 2, 3, 4, 5}),
    ("top_k 2", {"top_k": 2}, {2, 5}),
    ("top_k above vocabulary", {"top_k": 100}, {0, 1, 2, 3, 4, 5}),
    ("top_p of one token", {"top_p": 0.3}, {2}),
    ("top_p just reached", {"top_p": float(PROBS[2]) - 1e-6}, {2}),
    ("top_p just missed", {"top_p": float(PROBS[2]) + 1e-6}, {2, 5}),
    ("top_p of 0.95", {"top_p": 0.95}, {2, 5, 0, 1}),
    ("min_p", {"min_p": 0.3}, {2, 5, 0}),
    ("min_p 1 keeps the likeliest", {"min_p": 1.0}, {2}),
    ("top_p counts after top_k", {"top_k": 2, "top_p": 0.6}, {2}),
    ("bias lifts", {"logit_bias": {3: 100.0}}, {3}),
    ("bias bans", {"logit_bias": {2: -100.0, 5: -100.0}}, {0, 1, 3, 4}),
    ("tiny temperature", {"temperature": 1e-300}, {2}),
    ("huge temperature", {"temperature": 100.0, "top_k": 3}, {2, 5, 0}),
]


@pytest.mark.parametrize(("params", "kept"), [k[1:] for k in KEPT], ids=[k[0] for k in KEPT])
def test_draws_follow_the_filtered_distribution(params: dict[str, object], kept: set[int]) -> None:
    sampling = replace(SamplingParams(), **params)  # type: ignore[arg-type]
    counts = draw(sample_spec(sampling=sampling))
    assert set(counts) == kept
    scores = LOGITS[0].double() / max(sampling.temperature, 1e-6)
    for token_id, bias in sampling.logit_bias.items():
        scores[token_id] += bias
    ids = sorted(kept)
    want = scores[ids].softmax(-1) * NUM_DRAWS
    chi_square = sum((counts[i] - w) ** 2 / w for i, w in zip(ids, want.tolist(), strict=True))
    # Above this once in ten thousand choices of seeds (Wilson-Hilferty), and these are fixed.
    freedom = max(1, len(ids) - 1)
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


PENALTIES = [
    # id                       prompt  output     params                        likeliest
    ("none", (), (), {}, 2),
    ("presence, once", (), (2,), {"presence_penalty": 0.6}, 5),
    ("presence does not add up", (), (2, 2, 2, 5), {"presence_penalty": 0.6}, 2),
    ("presence spares the prompt", (2,), (), {"presence_penalty": 2.0}, 2),
    ("frequency adds up", (), (2, 2, 2, 5), {"frequency_penalty": 0.5}, 0),
    ("negative frequency", (), (1,) * 5, {"frequency_penalty": -0.5}, 1),
    ("repetition over output", (), (2,), {"repetition_penalty": 1.5}, 5),
    ("repetition over prompt", (2, 5), (), {"repetition_penalty": 2.0}, 0),
    ("repetition once per token", (5,), (5,), {"repetition_penalty": 1.1}, 2),
    ("repetition below 1", (0,), (), {"repetition_penalty": 0.5}, 0),
]


@pytest.mark.parametrize(
    ("prompt", "output", "params", "want"),
    [p[1:] for p in PENALTIES],
    ids=[p[0] for p in PENALTIES],
)
def test_penalties(
    prompt: tuple[int, ...], output: tuple[int, ...], params: dict[str, object], want: int
) -> None:
    sampling = replace(GREEDY, **params)  # type: ignore[arg-type]
    token_ids, _ = sample(LOGITS, [sample_spec(prompt, output, sampling)])
    assert token_ids == [want]


def test_repetition_penalty_lowers_negative_scores_too() -> None:
    sampling = replace(GREEDY, repetition_penalty=2.0, logit_bias={2: -100, 5: -100, 0: -100})
    logits = torch.tensor([[-1.0, -2.0, -3.0, -1.5, -9.0, -9.0]])
    token_ids, _ = sample(logits, [sample_spec((3,), (), sampling)])
    assert token_ids == [1]


MIN_TOKENS = [
    # id                    num_output min_tokens want
    ("first of two", 0, 2, 5),
    ("second of two", 1, 2, 5),
    ("third", 2, 2, 2),
    ("no minimum", 0, 0, 2),
]


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(min_p=1.0)], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    ("num_output", "min_tokens", "want"),
    [m[1:] for m in MIN_TOKENS],
    ids=[m[0] for m in MIN_TOKENS],
)
def test_stop_ids_are_banned_before_min_tokens(
    num_output: int, min_tokens: int, want: int, sampling: SamplingParams
) -> None:
    stop = StopParams(max_tokens=9, min_tokens=min_tokens, stop_token_ids=(2, 4))
    spec = sample_spec((), (1,) * num_output, sampling, stop)
    assert sample(LOGITS, [spec])[0] == [want]


def test_logprobs_are_the_models_own() -> None:
    """Whatever biases, grammars and temperatures make of it; only of rows that ask."""
    changes: list[dict[str, object]] = [
        {"num_logprobs": 2},
        {},
        {"num_logprobs": 0, "temperature": 0.5, "top_k": 1},
        {"num_logprobs": 20, "logit_bias": {2: -100.0}},
        {"num_logprobs": 1},
    ]
    specs = [sample_spec(sampling=replace(GREEDY, **c)) for c in changes]  # type: ignore[arg-type]
    token_ids, logprobs = sample(LOGITS.expand(5, -1), specs, [None] * 4 + [packed({4})])
    assert token_ids == [2, 2, 2, 5, 4]
    assert logprobs[1] is None
    falling = [2, 5, 0, 1, 4, 3]
    for row, num_top in ((0, 2), (2, 0), (3, 6), (4, 1)):
        told = logprobs[row]
        assert told is not None
        assert told.logprob == pytest.approx(math.log(PROBS[token_ids[row]]), abs=1e-6)
        assert [token_id for token_id, _ in told.top] == falling[:num_top]
        for token_id, logprob in told.top:
            assert logprob == pytest.approx(math.log(PROBS[token_id]), abs=1e-6)


def test_equally_likely_tokens_are_told_by_rising_id() -> None:
    """However many the other rows ask for."""
    logits = torch.zeros(2, 3000)
    logits[:, 7] = 1.0
    specs = [sample_spec(sampling=replace(GREEDY, num_logprobs=k)) for k in (5, 20)]
    tops = [[token_id for token_id, _ in told.top] for told in sample(logits, specs)[1] if told]
    assert tops == [[7, 0, 1, 2, 3], [7, *(i for i in range(20) if i != 7)]]
    few = torch.zeros(1, 30)
    few[0, 11:] = -1.0
    (told,) = sample(few, specs[1:])[1]
    assert told is not None
    assert [token_id for token_id, _ in told.top] == list(range(20))


MASKS = [
    # id                      allowed    parameters                       kept
    ("greedy", {0, 3}, {"temperature": 0.0}, {0}),
    ("drawn", {0, 3}, {}, {0, 3}),
    ("before filters", {0, 1, 3}, {"top_k": 2}, {0, 1}),
    ("after biases", {0, 1}, {"logit_bias": {1: 100.0, 4: 100.0}}, {1}),
    ("one token", {3}, {"top_p": 0.1}, {3}),
]


@pytest.mark.parametrize(
    ("mask", "params", "kept"), [m[1:] for m in MASKS], ids=[m[0] for m in MASKS]
)
def test_only_what_a_mask_allows_is_sampled(
    mask: set[int], params: dict[str, object], kept: set[int]
) -> None:
    sampling = replace(SamplingParams(), **params)  # type: ignore[arg-type]
    specs = [sample_spec(sampling=replace(sampling, seed=seed)) for seed in range(2000)]
    masks = [packed(mask), None] * 1000
    token_ids, _ = sample(LOGITS.expand(2000, -1), specs, masks)
    assert set(token_ids[::2]) == kept
    assert set(token_ids[1::2]) - kept, "rows without a mask are free"


def test_logits_are_left_as_given() -> None:
    logits = LOGITS.clone()
    sampling = SamplingParams(logit_bias={1: 5.0}, top_k=2, top_p=0.5, repetition_penalty=1.3)
    sample(logits, [sample_spec((1, 2), (3,), sampling)])
    assert torch.equal(logits, LOGITS)


def test_a_row_of_nan_stays_in_the_vocabulary_and_alone() -> None:
    logits = torch.cat([torch.full((1, 6), float("nan")), LOGITS])
    for sampling in (GREEDY, SamplingParams(top_k=1), SamplingParams(top_p=0.1)):
        token_ids, _ = sample(logits, [sample_spec(sampling=sampling)] * 2)
        assert 0 <= token_ids[0] < 6
        assert token_ids[1] == 2


@pytest.mark.parametrize("vocab_size", [2000, 5000])
def test_top_p_of_a_flat_distribution_keeps_its_share(vocab_size: int) -> None:
    """More tokens than the shortlist: the whole vocabulary has to be sorted."""
    logits = torch.linspace(0, 1e-3, vocab_size).expand(500, -1)
    specs = [sample_spec(sampling=SamplingParams(top_p=0.9, seed=i)) for i in range(500)]
    token_ids, _ = sample(logits, specs)
    assert min(token_ids) >= vocab_size // 10 - 2
    assert len(set(token_ids)) > 400


def test_children_and_positions_draw_differently() -> None:
    flat = torch.zeros(64, 1000)
    by_child = [sample_spec(sampling=SamplingParams(), child_index=i) for i in range(64)]
    by_position = [sample_spec(output=(0,) * i, sampling=SamplingParams()) for i in range(64)]
    assert len(set(sample(flat, by_child)[0])) > 50
    assert len(set(sample(flat, by_position)[0])) > 50


specs_strategy = st.builds(
    sample_spec,
    prompt=st.lists(st.integers(0, 49), max_size=5).map(tuple),
    output=st.lists(st.integers(0, 49), max_size=5).map(tuple),
    sampling=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 1000]),
        top_p=st.sampled_from([0.2, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([{}, {3: 4.0, 7: -100.0}]),
        seed=st.integers(0, 2**64 - 1),
        num_logprobs=st.sampled_from([None, 0, 3, 20]),
    ),
    stop=st.builds(
        StopParams,
        max_tokens=st.just(9),
        min_tokens=st.integers(0, 3),
        stop_token_ids=st.sampled_from([(), (1, 2)]),
    ),
    child_index=st.integers(0, 15),
)


MASK_OF = {"a": packed({4, 9, 31}, 50), "b": packed(set(range(10, 50)), 50)}


@settings(deadline=None)
@given(st.lists(specs_strategy, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_batch(specs: list[SampleSpec], random: Random) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    logits = torch.randn(len(specs), 50, generator=generator) * 3
    # Coarse, so that there are equals among the likeliest.
    logits = logits.round(decimals=random.choice([0, 6]))
    masks = [random.choice([None, *MASK_OF.values()]) for _ in specs]
    together = list(zip(*sample(logits, specs, masks), strict=True))
    alone = [
        (tokens[0], told[0])
        for i, spec in enumerate(specs)
        for tokens, told in [sample(logits[i : i + 1], [spec], masks[i : i + 1])]
    ]
    order = random.sample(range(len(specs)), len(specs))
    shuffled = sample(logits[order], [specs[i] for i in order], [masks[i] for i in order])
    assert together == alone
    assert list(zip(*shuffled, strict=True)) == [together[i] for i in order]
