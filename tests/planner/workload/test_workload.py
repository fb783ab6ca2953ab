"""Workloads: one seed is one workload at every rate, and a mix is made of its classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.slo import Slo
from planner.sim.traffic import MAX_REQUESTS, Traffic
from planner.workload.arrivals import Gaps, Piece, Pieces, Replay
from planner.workload.classes import RequestClass
from planner.workload.columns import trace_of
from planner.workload.distributions import parse_lengths
from planner.workload.lengths import Independent, Recorded
from planner.workload.trace import TraceRow
from planner.workload.workload import Workload
from policy.step_times import PS_PER_S


def lengths(prompt: str, output: str) -> Independent:
    return Independent(prompt=parse_lengths("", prompt), output=parse_lengths("", output))


TRACE = trace_of(
    [
        TraceRow(at_s=0.0, num_prompt_tokens=600, num_output_tokens=5, block_hashes=(7, 8)),
        TraceRow(at_s=1.0, num_prompt_tokens=100, num_output_tokens=6),
        TraceRow(at_s=1.5, num_prompt_tokens=1000, num_output_tokens=7, block_hashes=(7, 9)),
    ]
)
REPLAYED = Workload(
    name="replayed",
    arrivals=Replay(trace=TRACE),
    classes=(RequestClass(lengths=Recorded(trace=TRACE)),),
)
DRAWN = Workload(name="drawn", classes=(RequestClass(lengths=lengths("1:900", "lognormal:50:1")),))
MIXED = Workload(
    name="mixed",
    arrivals=Gaps(process="gamma", burstiness=0.5),
    classes=(
        RequestClass(
            name="chat",
            share=0.6,
            lengths=lengths("1:100", "9"),
            slo=Slo(ttft_s=0.25, tpot_s=0.1),
            target=0.99,
        ),
        RequestClass(name="agent", share=0.3, lengths=Recorded(trace=TRACE), cached_share=0.5),
        RequestClass(name="tool", share=0.1, lengths=Recorded(trace=TRACE)),
    ),
)
ALL = [REPLAYED, DRAWN, MIXED, MIXED.with_outputs(2.0), MIXED.resampled(), REPLAYED.resampled()]


def blocks_of(traffic: Traffic) -> list[list[int]]:
    bounds = traffic.first_block[1:-1]
    return [each.tolist() for each in np.split(traffic.blocks, bounds)]


def cut(traffic: Traffic, num: int) -> list[Any]:
    """The first so many."""
    columns = [column[:num].tolist() for column in traffic[:5]]
    return [*columns, blocks_of(traffic)[:num], traffic.block_tokens]


@given(
    st.sampled_from(ALL),
    st.integers(0, 2**40),
    st.floats(0.1, 1e4),
    st.integers(1, 40),
    st.integers(0, 40),
)
def test_a_seed_is_a_workload(
    workload: Workload, seed: int, rate_per_s: float, num: int, more: int
) -> None:
    first = workload.traffic(rate_per_s, num, seed)
    assert (np.diff(first.arrival_ps) >= 0).all()
    assert len(first.first_block) == num + 1
    assert (first.num_prompt_tokens >= 1).all()
    assert (first.num_output_tokens >= 1).all()
    assert (first.num_cached_tokens < first.num_prompt_tokens).all()
    # The same again, as the beginning of a longer one, and at another rate but for its moments.
    assert cut(first, num) == cut(workload.traffic(rate_per_s, num, seed), num)
    longer = workload.traffic(rate_per_s, num + more, seed)
    assert cut(first, num)[:5] == cut(longer, num)[:5]
    fast = workload.traffic(2 * rate_per_s, num, seed)
    assert cut(first, num)[1:] == cut(fast, num)[1:]
    assert first.arrival_ps == pytest.approx(2 * fast.arrival_ps, abs=2)


@pytest.mark.parametrize("workload", ALL)
def test_only_what_is_random_differs_by_seed(workload: Workload) -> None:
    first, second = (workload.traffic(3.0, 50, seed) for seed in (0, 1))
    assert (cut(first, 50) != cut(second, 50)) == workload.is_random


def test_other_arrivals_leave_lengths_alone() -> None:
    """Streams of random numbers are apart."""
    even = Workload(name="even", arrivals=Gaps(process="constant"), classes=DRAWN.classes)
    assert cut(even.traffic(1.0, 50), 50)[1:] == cut(DRAWN.traffic(1.0, 50), 50)[1:]


@pytest.mark.parametrize("workload", ALL)
def test_means_and_rate_are_those_of_a_long_run(workload: Workload) -> None:
    num, rate_per_s = 150_000, 12.5
    traffic = workload.traffic(rate_per_s, num, 3)
    assert num / (traffic.arrival_ps[-1] / PS_PER_S) == pytest.approx(rate_per_s, rel=0.02)
    assert traffic.num_prompt_tokens.mean() == pytest.approx(workload.mean_prompt_tokens, rel=0.02)
    assert traffic.num_output_tokens.mean() == pytest.approx(workload.mean_output_tokens, rel=0.02)


def test_a_trace_is_replayed_as_it_is() -> None:
    traffic = REPLAYED.traffic(REPLAYED.natural_rate_per_s or 0.0, 3)
    assert traffic.arrival_ps.tolist() == [0, PS_PER_S, 3 * PS_PER_S // 2]
    assert traffic.num_prompt_tokens.tolist() == [600, 100, 1000]
    assert traffic.num_output_tokens.tolist() == [5, 6, 7]
    assert blocks_of(traffic) == [[0, 1], [], [0, 2]]
    assert not traffic.request_class.any()
    assert not traffic.num_cached_tokens.any()


# --- mixes --------------------------------------------------------------------------------------


def test_shares_of_a_mix() -> None:
    num = 100_000
    counts = np.bincount(MIXED.traffic(1.0, num, 5).request_class)
    for count, each in zip(counts, MIXED.classes, strict=True):
        error = (num * each.share * (1 - each.share)) ** 0.5
        assert count == pytest.approx(num * each.share, abs=4 * error)


def test_each_class_has_requests_of_its_own() -> None:
    traffic = MIXED.traffic(1.0, 2000, 5)
    blocks = blocks_of(traffic)
    rows = [np.flatnonzero(traffic.request_class == place) for place in range(3)]
    assert (traffic.num_prompt_tokens[rows[0]] <= 100).all()
    assert not any(blocks[row] for row in rows[0])
    for place in (1, 2):  # in the trace's order, whatever comes between
        want = np.resize([600, 100, 1000], len(rows[place]))
        assert (traffic.num_prompt_tokens[rows[place]] == want).all()
    agent, tool = ({each for row in rows[place] for each in blocks[row]} for place in (1, 2))
    assert agent
    assert tool
    assert not agent & tool


def test_what_is_cached() -> None:
    traffic = MIXED.traffic(1.0, 2000, 5)
    halves = traffic.num_prompt_tokens // 2
    assert (traffic.num_cached_tokens == np.where(traffic.request_class == 1, halves, 0)).all()
    (only,) = DRAWN.classes
    cached = RequestClass(lengths=only.lengths, cached_share=1.0)
    traffic = Workload(name="cached", classes=(cached,)).traffic(1.0, 100)
    assert (traffic.num_cached_tokens == traffic.num_prompt_tokens - 1).all()


def test_longer_answers_change_nothing_else() -> None:
    plain, doubled = MIXED.traffic(1.0, 500), MIXED.with_outputs(2.0).traffic(1.0, 500)
    assert (doubled.num_output_tokens == 2 * plain.num_output_tokens).all()
    assert cut(doubled._replace(num_output_tokens=plain.num_output_tokens), 500) == cut(plain, 500)
    assert MIXED.with_outputs(2.0).mean_output_tokens == 2 * MIXED.mean_output_tokens


def test_resampled_is_poisson_unless_it_is_told_otherwise() -> None:
    assert REPLAYED.resampled().natural_rate_per_s is None
    even = REPLAYED.resampled(Gaps(process="constant")).traffic(4.0, 8)
    assert (np.diff(even.arrival_ps) == PS_PER_S // 4).all()
    assert not even.blocks.size


# --- what is said -------------------------------------------------------------------------------


def test_descriptions() -> None:
    assert MIXED.describe().splitlines() == [
        "mixed: arrivals gamma:0.5",
        "  class chat, 60 %: prompts 1:100, outputs 9, independent; in the mean 50.5 prompt and "
        "9.0 output tokens; 99 % within ttft 0.25 s, tpot 0.1 s",
        "  class agent, 30 %: the 3 requests of a trace, in order; in the mean 566.7 prompt and "
        "6.0 output tokens, 50 % of each prompt cached; no limits",
        "  class tool, 10 %: the 3 requests of a trace, in order; in the mean 566.7 prompt and "
        "6.0 output tokens; no limits",
    ]
    assert REPLAYED.describe().splitlines()[0] == (
        "replayed: arrivals a trace of 3 requests over 2 s, 1.33 a second"
    )
    assert MIXED.slos == (Slo(ttft_s=0.25, tpot_s=0.1), Slo(), Slo())


def of_class(**values: Any) -> Workload:
    return Workload(name="w", classes=(RequestClass(lengths=lengths("5", "5"), **values),))


PAUSE = Pieces(pieces=(Piece(duration_s=1.0, rate_per_s=0.0),))
PROBLEMS: list[tuple[str, Callable[[], Traffic], str]] = [
    ("no rate", lambda: DRAWN.traffic(0.0, 5), "rate must be above 0 and finite, got 0"),
    ("infinite", lambda: DRAWN.traffic(float("inf"), 5), "rate must be above 0 and finite"),
    ("no request", lambda: DRAWN.traffic(1.0, 0), "1 to 16777216 requests, got 0"),
    ("too many", lambda: DRAWN.traffic(1.0, MAX_REQUESTS + 1), "got 16777217"),
    ("seed", lambda: DRAWN.traffic(1.0, 1, -1), "seed must be at least 0"),
    ("too slow", lambda: DRAWN.traffic(1e-6, 100), r"take .* s, 4.61e\+06 s at most"),
    ("share", lambda: of_class(share=0.5).traffic(1.0, 5), "shares .* add up to 1, got 0.5"),
    ("no share", lambda: of_class(share=0.0).traffic(1.0, 5), "class all: share must be above 0"),
    ("target", lambda: of_class(target=1.5).traffic(1.0, 5), "target must be above 0 and at most"),
    ("cached", lambda: of_class(cached_share=-1).traffic(1.0, 5), "cached_share must be 0 to 1"),
    ("slo", lambda: of_class(slo=Slo(tpot_s=0)).traffic(1.0, 5), "slo.tpot_s must be above 0"),
    ("outputs", lambda: DRAWN.with_outputs(0).traffic(1.0, 5), "scaled by a number above 0, got 0"),
    ("none", lambda: Workload(name="w", classes=()).traffic(1.0, 5), "add up to 1, got 0"),
    ("arrivals", lambda: DRAWN.resampled(PAUSE).traffic(1.0, 5), "a rate above 0 at some time"),
]


@pytest.mark.parametrize(("make", "says"), [c[1:] for c in PROBLEMS], ids=[c[0] for c in PROBLEMS])
def test_problems(make: Callable[[], Traffic], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_all_problems_at_once() -> None:
    twice = (RequestClass(lengths=lengths("5", "5"), share=0.2, target=0.0),) * 2
    with pytest.raises(ConfigError) as caught:
        Workload(name="w", arrivals=Gaps(burstiness=0.0), classes=twice).traffic(-1.0, 0, -1)
    assert len(caught.value.problems) == 8


def test_columns_are_the_simulator_s() -> None:
    columns = MIXED.traffic(1.0, 10)[:7]
    assert {column.dtype for column in columns} == {np.dtype(np.int64)}
