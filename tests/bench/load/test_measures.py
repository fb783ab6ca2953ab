"""Outcomes to figures: latencies, attainment, throughput, failures, trend and notes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.backlog import in_flight, mean_in_flight, trend
from bench.load.measures import Cpu, Failures, Measures, Window, measure
from bench.load.outcome import Outcome, Usage
from bench.load.spread import spread
from core.slo import Slo
from planner.search.intervals import share
from tests.bench.load.outcomes import IDLE, outcome

LIMITS = Slo(ttft_s=0.6, tpot_s=0.15)


def measured(outcomes: list[Outcome], from_s: float = 0.0, cpu: Cpu = IDLE) -> Measures:
    return measure(outcomes, window=Window(from_s=from_s, to_s=10.0), limits=LIMITS, cpu=cpu)


def test_a_spread_is_of_values_that_were_measured() -> None:
    found = spread(float(i) for i in range(1, 101))
    assert found is not None
    assert (found.mean, found.p50, found.p90, found.p95, found.p99) == (50.5, 50, 90, 95, 99)
    assert (found.max, found.num_values) == (100, 100)
    assert spread([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_are_ordered(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert {found.p50, found.p90, found.p95, found.p99, found.max} <= set(values)
    assert found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max == max(values)


WILSON = [
    # hits all low     high    (Newcombe 1998, table I, and closed forms at the ends)
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0),
]


@pytest.mark.parametrize(("hits", "num_all", "low", "high"), WILSON)
def test_wilson(hits: int, num_all: int, low: float, high: float) -> None:
    found = share(hits, num_all)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_share(a: int, b: int) -> None:
    found = share(min(a, b), max(a, b))
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_latencies_are_exactly_those_scripted() -> None:
    found = measured([outcome(i / 10, ttft_s=0.4, gap_s=0.05, num_tokens=24) for i in range(50)])
    wanted = {"ttft": 0.4, "first_gap": 0.05, "tpot": 0.05, "e2e": 0.4 + 23 * 0.05, "itl": 0.05}
    for name, want_s in wanted.items():
        each = found.latencies_s[name]
        assert each is not None
        assert (each.mean, each.p50, each.max) == pytest.approx((want_s, want_s, want_s))
        assert each.num_values == (50 if name != "itl" else 50 * 23)


def test_one_token_answers_have_no_gaps() -> None:
    found = measured([outcome(1.0, num_tokens=1)])
    assert found.latencies_s["ttft"] is not None
    assert (found.latencies_s["tpot"], found.latencies_s["itl"]) == (None, None)


ATTAINED = [
    # id              outcome                        hits
    ("in time", outcome(1.0), 1),
    ("one token is judged by its TTFT", outcome(1.0, num_tokens=1), 1),
    ("late", outcome(1.0, ttft_s=0.7), 0),
    ("slow", outcome(1.0, gap_s=0.2), 0),
    ("failed, in time until then", outcome(1.0, error="PEER_LOST"), 0),
    ("refused", outcome(1.0, num_tokens=0, error="HTTP_429"), 0),
]


@pytest.mark.parametrize(("made", "hits"), [c[1:] for c in ATTAINED], ids=[c[0] for c in ATTAINED])
def test_attainment_is_joint_and_of_all_that_arrived(made: Outcome, hits: int) -> None:
    attainment = measured([made, outcome(2.0)]).attainment
    assert attainment is not None
    assert (attainment.num_hits, attainment.num_all) == (hits + 1, 2)


def test_without_limits_there_is_no_attainment() -> None:
    window = Window(from_s=0.0, to_s=10.0)
    assert measure([outcome(1.0)], window=window, limits=None, cpu=IDLE).attainment is None


def test_failures_are_counted_by_kind() -> None:
    outcomes = [outcome(t, num_tokens=0, error=e) for t, e in ((1, "A"), (2, "B"), (3, "B"))]
    found = measured([*outcomes, outcome(4.0)])
    assert found.failures == (
        Failures(reason="B", count=2, example="why 2"),
        Failures(reason="A", count=1, example="why 1"),
    )
    assert (found.num_arrived, found.num_answered) == (4, 1)


def test_the_warm_up_does_not_count() -> None:
    found = measured([outcome(1.0, ttft_s=9.0), outcome(5.0), outcome(6.0)], from_s=4.0)
    ttft = found.latencies_s["ttft"]
    assert ttft is not None
    assert ttft.num_values == 2
    assert ttft.max == pytest.approx(0.5)
    assert found.attainment == share(2, 2)


def test_throughput_is_of_what_happened_within_the_window() -> None:
    # Tokens at 3.5 to 3.9, 5.5 to 5.9 and 9.8 to 10.2; window 3.75 to 10.
    found = measured([outcome(3.0), outcome(5.0), outcome(9.3)], from_s=3.75).throughput
    assert found.arrived_per_s == pytest.approx(2 / 6.25)
    assert found.answered_per_s == pytest.approx(2 / 6.25)
    assert found.prompt_tokens_per_s == pytest.approx(200 / 6.25)
    assert found.output_tokens_per_s == pytest.approx((2 + 5 + 3) / 6.25, rel=0.11)


def test_a_window_of_one_moment_has_no_rates() -> None:
    window = Window(from_s=0.0, to_s=0.0)
    found = measure([outcome(0.0)], window=window, limits=None, cpu=IDLE)
    assert (found.num_arrived, found.throughput.arrived_per_s) == (1, 0.0)
    assert not found.trend.grows


TRENDS = [
    # id            seconds that the i-th of 200 requests takes       grows
    ("steady", lambda i: 1.0, False),
    ("one hiccup", lambda i: 3.0 if 90 < i < 100 else 1.0, False),
    ("piles up", lambda i: 0.5 + i / 40, True),
    ("heals", lambda i: 5.0 - i / 50, False),
]


@pytest.mark.parametrize(("takes_s", "grows"), [c[1:] for c in TRENDS], ids=[c[0] for c in TRENDS])
def test_trends(takes_s: Callable[[int], float], grows: bool) -> None:
    outcomes = [outcome(i / 10, takes_s(i), num_tokens=1) for i in range(200)]
    assert trend(outcomes, 5.0, 20.0).grows == grows


def test_in_flight() -> None:
    outcomes = [outcome(0.0, 2.0, num_tokens=1), outcome(1.0, 2.0, num_tokens=1)]
    assert in_flight(outcomes, [0.5, 1.5, 2.5, 3.5]) == [1, 2, 1, 0]
    assert mean_in_flight(outcomes, 0.0, 4.0) == pytest.approx(1.0)
    assert mean_in_flight(outcomes, 1.0, 2.0) == pytest.approx(2.0)


MANY = [outcome(i / 100) for i in range(200)]
NOTES = [
    # id                outcomes                                        cpu     says
    ("few answers", [outcome(1.0)], IDLE, "1 answers: too few for a p99"),
    ("busy", MANY, Cpu(cpu_s=8.0, wall_s=10.0), "80% of a core"),
    ("late", [outcome(i / 100, late_s=0.1) for i in range(200)], IDLE, "100.0 ms late or more"),
    ("assumed", [*MANY, outcome(3.0, is_told=False)], IDLE, "1 answers came without a token count"),
    ("merged", [*MANY, outcome(3.0, chunk_tokens=4)], IDLE, "1 answers had chunks of several"),
    ("short", [*MANY, outcome(3.0, max_tokens=50)], IDLE, "1 answers were shorter"),
    ("counted short", [*MANY, outcome(3.0, usage=Usage(9, 4))], IDLE, "1 answers were shorter"),
]


@pytest.mark.parametrize(
    ("outcomes", "cpu", "says"), [c[1:] for c in NOTES], ids=[c[0] for c in NOTES]
)
def test_notes(outcomes: list[Outcome], cpu: Cpu, says: str) -> None:
    (note,) = measured(outcomes, cpu=cpu).notes
    assert says in note


def test_nothing_to_note() -> None:
    assert measured(MANY).notes == ()
