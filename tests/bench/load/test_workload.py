"""Arrivals, lengths and prompts: what is drawn, and that a seed draws it again."""

from itertools import islice, pairwise
from math import inf
from random import Random
from statistics import fmean, median, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.lengths import from_pairs, independent, parse_lengths
from bench.load.prompts import Prompts, SharedPrefixes
from bench.load.times import PROCESSES, arrival_times, poisson
from bench.load.workload import Drawn, Extent, Replayed, Workload
from core.errors import ConfigError
from planner.workload.trace import BLOCK_TOKENS, TraceRow

FIXED = independent(lambda _: 10, lambda _: 3)
TRACE = [
    TraceRow(at_s=at_s, num_prompt_tokens=8, num_output_tokens=2) for at_s in (0.0, 1.0, 4.0, 10.0)
]

GAPS = [
    # process    burstiness  coefficient of variation
    ("poisson", 1.0, 1.0),
    ("gamma", 1.0, 1.0),
    ("gamma", 0.25, 2.0),
    ("gamma", 4.0, 0.5),
    ("constant", 1.0, 0.0),
]


@pytest.mark.parametrize(("process", "burstiness", "want"), GAPS)
def test_gaps_have_the_mean_and_the_spread_asked_for(
    process: str, burstiness: float, want: float
) -> None:
    times = list(islice(arrival_times(process, Random(7), 5.0, burstiness), 20_000))
    gaps = [times[0], *(b - a for a, b in pairwise(times))]
    assert fmean(gaps) == pytest.approx(0.2, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(want, rel=0.05, abs=1e-9)


def test_poisson_ends_in_time() -> None:
    times = list(poisson(Random(1), 10.0, 30.0))
    assert 200 < len(times) < 400
    assert times == sorted(times)
    assert times[-1] < 30.0


LENGTHS = [
    # text                      least most  median
    ("512", 512, 512, 512),
    ("128:1024", 128, 1024, 576),
    ("7:7", 7, 7, 7),
    ("lognormal:300:0.8", 1, inf, 300),
    ("lognormal:300:0.8:500", 1, 500, 300),
    ("lognormal:1:3", 1, inf, 1),
]


@pytest.mark.parametrize(("text", "least", "most", "middle"), LENGTHS)
def test_lengths(text: str, least: int, most: float, middle: int) -> None:
    draw, rng = parse_lengths("--prompt-tokens", text), Random(3)
    drawn = [draw(rng) for _ in range(5000)]
    assert least <= min(drawn) <= max(drawn) <= most
    assert median(drawn) == pytest.approx(middle, rel=0.1)


REFUSED = [
    "",
    "0",
    "-3",
    "9:3",
    "0:4",
    "1.5",
    "a",
    "lognormal:5",
    "lognormal:0:1",
    "lognormal:9:1:8",
]


@pytest.mark.parametrize("text", [*REFUSED, "uniform:1:2:3", "lognormal:5:inf", "1:2:3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--output-tokens must be N, LOW:HIGH"):
        parse_lengths("--output-tokens", text)


def test_pairs_stay_together() -> None:
    pairs = [(10, 1), (20, 2), (30, 3)]
    draw, rng = from_pairs(pairs), Random(0)
    assert {draw(rng) for _ in range(100)} == set(pairs)


EXTENTS = [
    # id            extent                                  at_s                       duration
    ("time", Extent(duration_s=2.0), [0.5, 1.0, 1.5], 2.0),
    ("count", Extent(max_requests=2), [0.5, 1.0], 1.0),
    ("count first", Extent(duration_s=9.0, max_requests=2), [0.5, 1.0], 1.0),
    ("time first", Extent(duration_s=1.2, max_requests=9), [0.5, 1.0], 1.2),
]


@pytest.mark.parametrize(
    ("extent", "at_s", "duration_s"), [c[1:] for c in EXTENTS], ids=[c[0] for c in EXTENTS]
)
def test_where_a_workload_ends(extent: Extent, at_s: list[float], duration_s: float) -> None:
    drawn = Drawn(process="constant", lengths=FIXED)
    workload = drawn.workload(rate_per_s=2.0, extent=extent, seed=0)
    assert [row.at_s for row in workload.rows] == pytest.approx(at_s)
    assert workload.duration_s == pytest.approx(duration_s)
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in workload.rows} == {(10, 3)}


SPEEDS = [(0.4, [0.0, 1.0, 4.0, 10.0]), (0.8, [0.0, 0.5, 2.0, 5.0]), (0.2, [0.0, 2.0, 8.0, 20.0])]


@pytest.mark.parametrize(("rate_per_s", "at_s"), SPEEDS)
def test_a_trace_is_played_at_the_rate_asked_for(rate_per_s: float, at_s: list[float]) -> None:
    replayed = Replayed(rows=TRACE)
    assert replayed.rate_per_s == pytest.approx(0.4)
    workload = replayed.workload(rate_per_s=rate_per_s, extent=Extent(), seed=0)
    assert [row.at_s for row in workload.rows] == pytest.approx(at_s)
    assert workload.duration_s == pytest.approx(at_s[-1])


def test_nothing_arrives() -> None:
    drawn = Drawn(process="constant", lengths=FIXED)
    with pytest.raises(ConfigError, match=r"no request arrives within 5 s at 0\.1 a second"):
        drawn.workload(rate_per_s=0.1, extent=Extent(duration_s=5.0), seed=0)


def workload_of(seed: int, process: str, rate_per_s: float = 4.0) -> Workload:
    lengths = independent(parse_lengths("", "1:900"), parse_lengths("", "lognormal:50:1"))
    drawn = Drawn(process=process, burstiness=0.5, lengths=lengths)
    return drawn.workload(rate_per_s=rate_per_s, extent=Extent(max_requests=20), seed=seed)


@given(st.integers(0, 2**40), st.sampled_from(list(PROCESSES)))
def test_a_seed_is_a_workload(seed: int, process: str) -> None:
    first, again = workload_of(seed, process), workload_of(seed, process)
    assert first == again != workload_of(seed + 1, process)
    # The same requests, twice as fast: rates are compared on one workload.
    fast = workload_of(seed, process, 8.0)
    assert [r.num_prompt_tokens for r in fast.rows] == [r.num_prompt_tokens for r in first.rows]
    assert [2 * r.at_s for r in fast.rows] == pytest.approx([r.at_s for r in first.rows])


# --- prompts ------------------------------------------------------------------------------------


def row(num_prompt_tokens: int, *block_hashes: int) -> TraceRow:
    return TraceRow(
        at_s=0.0,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=1,
        block_hashes=block_hashes,
    )


def prompts_of(
    *rows: TraceRow, seed: int = 0, shared: SharedPrefixes | None = None
) -> list[list[int]]:
    prompts = Prompts(seed=seed, vocabulary=range(100, 200), shared=shared)
    return [list(arrival.token_ids) for arrival in prompts.arrivals(rows)]


@given(st.lists(st.integers(1, 700), max_size=6), st.integers(0, 2**70))
def test_prompts_have_their_length_and_a_seed_repeats_them(nums: list[int], seed: int) -> None:
    rows = [row(num) for num in nums]
    made = prompts_of(*rows, seed=seed)
    assert made == prompts_of(*rows, seed=seed)
    assert [len(prompt) for prompt in made] == nums
    assert all(100 <= token < 200 for prompt in made for token in prompt)


def test_prompts_begin_differently_and_so_do_those_of_another_seed() -> None:
    made = prompts_of(*[row(20)] * 50) + prompts_of(*[row(20)] * 50, seed=1)
    assert len({tuple(prompt[:16]) for prompt in made}) == 100


def test_a_seed_means_the_same_tokens_on_every_machine() -> None:
    assert prompts_of(row(4)) == [[171, 117, 124, 133]]


def test_shared_prefixes_come_before_the_prompt() -> None:
    made = prompts_of(*[row(5)] * 40, shared=SharedPrefixes(num_prefixes=3, num_tokens=7))
    assert {len(prompt) for prompt in made} == {12}
    assert len({tuple(prompt[:7]) for prompt in made}) == 3
    assert len({tuple(prompt[7:]) for prompt in made}) == 40


def test_equal_hashes_are_equal_blocks() -> None:
    whole, part = 2 * BLOCK_TOKENS, BLOCK_TOKENS + 10
    first, second, third = prompts_of(row(whole, 8, 9), row(part, 8, 7), row(whole + 5, 8, 9))
    assert first[:BLOCK_TOKENS] == second[:BLOCK_TOKENS] == third[:BLOCK_TOKENS]
    assert first == third[:whole]
    assert first[BLOCK_TOKENS:part] != second[BLOCK_TOKENS:]
    assert (len(second), len(third)) == (part, whole + 5)
