"""What the benchmark of the load generator compares: known delays, and bars from figures."""

import pytest

from bench.load.goodput import Goodput, Point
from bench.load.measures import Window, measure
from bench.load.reference_server import ReferenceSpec
from bench.load.spread import spread
from bench.load_reference import (
    CAPACITY_PER_S,
    OUTPUT_TOKENS,
    PARTS,
    SPEC,
    _goodput_bars,
    _latency_bars,
    known_s,
    off,
)
from planner.search.intervals import share
from tests.bench.load.outcomes import IDLE, outcome


def test_the_schedule_is_absolute() -> None:
    spec = ReferenceSpec(ttft_s=0.4, gap_s=0.05, chunk_tokens=4)
    assert [spec.due_s(i) for i in range(3)] == pytest.approx([0.4, 0.45, 0.5])
    assert [spec.num_chunks(n) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert spec.whole_s(9) == pytest.approx(0.5)
    assert ReferenceSpec.from_json(spec.to_json()) == spec


def test_a_generator_without_an_error_has_none() -> None:
    outcomes = [outcome(i / 8, SPEC.ttft_s, SPEC.gap_s, OUTPUT_TOKENS) for i in range(80)]
    measures = measure(outcomes, window=Window(from_s=0.0, to_s=10.0), limits=None, cpu=IDLE)
    bars = list(_latency_bars(measures))
    assert len(bars) == len(known_s()) + 2
    assert all(bar.holds for bar in bars)
    assert [bar.value for bar in bars[: len(known_s())]] == pytest.approx([0] * 5, abs=1e-9)


def test_the_worse_of_median_and_mean_counts() -> None:
    found = spread([1.0, 1.0, 1.0, 1.4])
    assert found is not None
    assert off(found, 1.0) == pytest.approx(0.1)
    assert off(found, 1.2) == pytest.approx(0.2 / 1.2)


INTERVALS = [
    # id        low       high      bars that hold
    ("around", 0.97, 1.03, [True, True, True]),
    ("below", 0.8, 0.87, [True, False, True]),
    ("above", 1.1, 1.2, [False, True, True]),
    ("too wide", 0.9, 1.1, [True, True, False]),
]


@pytest.mark.parametrize(
    ("low", "high", "want"), [c[1:] for c in INTERVALS], ids=[c[0] for c in INTERVALS]
)
def test_the_capacity_has_to_be_inside(low: float, high: float, want: list[bool]) -> None:
    points = [
        Point(rate_per_s=rate * CAPACITY_PER_S, attainment=share(hits, 100), is_steady=True)
        for rate, hits in ((low, 99), (high, 10))
    ]
    bars = _goodput_bars(Goodput(points=points, target=0.9))
    assert [bar.holds for bar in bars] == want


def test_parts() -> None:
    assert PARTS == ("latencies", "goodput")
    assert pytest.approx(8.0) == CAPACITY_PER_S
