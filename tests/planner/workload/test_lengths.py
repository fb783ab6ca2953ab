"""Lengths: what is drawn, its mean, what stays together, and what texts say."""

from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from planner.workload.columns import MAX_TOKENS, Requests, joined, pairs_of, picked, trace_of
from planner.workload.distributions import Distribution, Lognormal, Sampled, Uniform, parse_lengths
from planner.workload.lengths import (
    Independent,
    Lengths,
    Pairs,
    Recorded,
    Stretched,
    resampled,
)
from planner.workload.trace import TraceRow

DRAWN = [
    # text                    least most  median
    ("512", 512, 512, 512),
    ("128:1024", 128, 1024, 576),
    ("7:7", 7, 7, 7),
    ("lognormal:300:0.8", 1, inf, 300),
    ("lognormal:300:0.8:500", 1, 500, 300),
    ("lognormal:300:0", 300, 300, 300),
    ("lognormal:2:3", 1, inf, 2),
]


@pytest.mark.parametrize(("text", "least", "most", "middle"), DRAWN)
def test_distributions(text: str, least: int, most: float, middle: int) -> None:
    lengths = parse_lengths("--prompt-tokens", text)
    drawn = lengths.draw(np.random.default_rng(3), 50_000)
    assert drawn.dtype == np.int64
    assert least <= drawn.min() <= drawn.max() <= most
    assert np.median(drawn) == pytest.approx(middle, rel=0.03 if middle > 99 else 0.5)
    error = drawn.std() / 50_000**0.5
    assert drawn.mean() == pytest.approx(lengths.mean, abs=4 * error + 0.5)  # 0.5: rounding
    assert str(lengths) == text


def test_no_length_is_beyond_the_bound() -> None:
    drawn = Lognormal(median=3.0, sigma=20.0).draw(np.random.default_rng(0), 1000)
    assert (drawn.min(), drawn.max()) == (1, MAX_TOKENS)


MEANS: list[tuple[Distribution, float]] = [
    (Uniform(low=3, high=10), 6.5),
    (Lognormal(median=300, sigma=0.8), 300 * np.exp(0.32)),  # a millionth is below 1
    (Lognormal(median=300, sigma=0, most=400), 300),
    (Sampled(values=np.array([1, 2, 6])), 3.0),
]


@pytest.mark.parametrize(("lengths", "want"), MEANS)
def test_means(lengths: Distribution, want: float) -> None:
    assert lengths.mean == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("most", [300.0, 900.0, inf])
def test_the_mean_of_a_clipped_lognormal_is_the_integral_of_its_quantiles(
    sigma: float, most: float
) -> None:
    lengths = Lognormal(median=300.0, sigma=sigma, most=most)
    # Midpoints of equal steps of z, weighted by the normal density.
    z = np.linspace(-12, 12, 200_001)
    weights = np.exp(-(z**2) / 2)
    values = np.clip(300.0 * np.exp(sigma * z), 1.0, min(most, MAX_TOKENS))
    assert lengths.mean == pytest.approx((values * weights).sum() / weights.sum(), rel=1e-6)


NO_LENGTHS = [
    *("", "0", "-3", "9:3", "0:4", "1.5", "a", "lognormal:5", "lognormal:0:1", "lognormal:9:1:8"),
    *(
        "uniform:1:2:3",
        "lognormal:5:inf",
        "lognormal:nan:1",
        "lognormal:5:21",
        "1:2:3",
        f"{MAX_TOKENS + 1}",
    ),
]


@pytest.mark.parametrize("text", NO_LENGTHS)
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--output-tokens must be N, LOW:HIGH"):
        parse_lengths("--output-tokens", text)


# --- pairs --------------------------------------------------------------------------------------

PAIRS = Pairs(
    num_prompt_tokens=np.array([10, 20, 30, 40]), num_output_tokens=np.array([1, 2, 3, 4])
)
TRACE = trace_of(
    [
        TraceRow(at_s=0.0, num_prompt_tokens=600, num_output_tokens=5, block_hashes=(7, 900)),
        TraceRow(at_s=1.0, num_prompt_tokens=100, num_output_tokens=6),
        TraceRow(at_s=1.5, num_prompt_tokens=1000, num_output_tokens=7, block_hashes=(7, 2**70)),
    ]
)


def drawn(lengths: Lengths, num: int, seed: int = 0) -> Requests:
    return lengths.draw(np.random.default_rng(seed), num)


def blocks_of(requests: Requests) -> list[list[int]]:
    bounds = requests.first_block
    return [requests.blocks[a:b].tolist() for a, b in pairwise(bounds)]


def test_pairs_stay_together_unless_they_are_drawn_apart() -> None:
    together = drawn(PAIRS, 40_000)
    assert (together.num_prompt_tokens == 10 * together.num_output_tokens).all()
    apart = drawn(PAIRS.apart(), 40_000)
    assert abs(np.corrcoef(apart.num_prompt_tokens, apart.num_output_tokens)[0, 1]) < 0.02
    for each in (together, apart):
        share = np.bincount(each.num_output_tokens)[1:] / 40_000
        assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 40_000) ** 0.5)
        assert each.num_prompt_tokens.mean() == pytest.approx(PAIRS.mean_prompt_tokens, rel=0.02)


def test_a_trace_begins_anew_and_shares_nothing_with_its_last_round() -> None:
    requests = drawn(Recorded(trace=TRACE), 7)
    assert list(requests.num_prompt_tokens) == [600, 100, 1000, 600, 100, 1000, 600]
    assert list(requests.num_output_tokens) == [5, 6, 7, 5, 6, 7, 5]
    assert blocks_of(requests) == [[0, 1], [], [0, 2], [3, 4], [], [3, 5], [6, 7]]


STRETCHED = [(2.0, [10, 12, 14]), (0.1, [1, 1, 1]), (1.0, [5, 6, 7]), (0.5, [2, 3, 4])]


@pytest.mark.parametrize(("factor", "want"), STRETCHED)
def test_longer_answers(factor: float, want: list[int]) -> None:
    recorded = Recorded(trace=TRACE)
    requests = drawn(Stretched(lengths=recorded, output_factor=factor), 3)
    assert list(requests.num_output_tokens) == want
    assert blocks_of(requests) == blocks_of(drawn(recorded, 3))


def test_a_trace_resampled() -> None:
    stretched = Stretched(lengths=Recorded(trace=TRACE), output_factor=2.0)
    requests = drawn(resampled(stretched), 100)
    pairs = set(zip(requests.num_prompt_tokens, requests.num_output_tokens, strict=True))
    assert pairs == {(600, 10), (100, 12), (1000, 14)}
    assert not requests.blocks.size
    assert resampled(PAIRS) is PAIRS


ALL: list[Lengths] = [
    PAIRS,
    PAIRS.apart(),
    Recorded(trace=TRACE),
    Stretched(lengths=PAIRS, output_factor=1.5),
    Independent(prompt=parse_lengths("", "1:900"), output=parse_lengths("", "lognormal:50:1:4000")),
    Independent(prompt=parse_lengths("", "8"), output=parse_lengths("", "9")),
]


@given(st.sampled_from(ALL), st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 50))
def test_laws(lengths: Lengths, seed: int, num: int, more: int) -> None:
    requests, longer = drawn(lengths, num, seed), drawn(lengths, num + more, seed)
    for short, long in zip(requests[:2], longer[:2], strict=True):
        assert len(short) == num
        assert (short == long[:num]).all()
        assert (long >= 1).all()
    assert blocks_of(requests) == blocks_of(longer)[:num]
    assert list(lengths.problems()) == []


@pytest.mark.parametrize("lengths", ALL)
def test_means_are_those_of_a_long_run(lengths: Lengths) -> None:
    requests = drawn(lengths, 90_000)
    assert requests.num_prompt_tokens.mean() == pytest.approx(lengths.mean_prompt_tokens, rel=0.02)
    assert requests.num_output_tokens.mean() == pytest.approx(lengths.mean_output_tokens, rel=0.02)


# --- columns ------------------------------------------------------------------------------------

RAGGED = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=8)


def of_blocks(blocks: list[list[int]]) -> Requests:
    lengths = np.arange(1, len(blocks) + 1)
    return Requests(
        num_prompt_tokens=lengths,
        num_output_tokens=lengths,
        first_block=np.cumsum([0, *map(len, blocks)]),
        blocks=np.array([each for row in blocks for each in row], dtype=np.int64),
    )


@given(RAGGED, RAGGED, st.data())
def test_picking_and_joining_are_those_of_lists(
    first: list[list[int]], second: list[list[int]], data: st.DataObject
) -> None:
    both, lists = joined([of_blocks(first), of_blocks(second)]), first + second
    assert blocks_of(both) == lists
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=12))
    some = picked(both, np.array(rows, dtype=np.int64))
    assert blocks_of(some) == [lists[row] for row in rows]
    assert list(some.num_prompt_tokens) == [both.num_prompt_tokens[row] for row in rows]


def test_more_tokens_than_there_can_be() -> None:
    with pytest.raises(ConfigError, match=f"may have {MAX_TOKENS} tokens at most, got {2**80}"):
        pairs_of([(1, 2), (3, 2**80)])
