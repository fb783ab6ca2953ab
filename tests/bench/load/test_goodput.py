"""The search: which rates are tried, and what is concluded from them."""

import asyncio
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.goodput import Goodput, Point, Search, find_goodput
from bench.load.measures import Measures, Window, measure
from bench.load.show import verdict
from core.slo import Slo
from planner.search.bracket import MAX_DOUBLINGS, MAX_HALVINGS, MAX_POINTS
from planner.search.intervals import share
from tests.bench.load.outcomes import IDLE, outcome

LIMITS = Slo(ttft_s=1.0)


def point(rate_per_s: float, hits: int, *, is_steady: bool = True, num_all: int = 100) -> Point:
    return Point(rate_per_s=rate_per_s, attainment=share(hits, num_all), is_steady=is_steady)


def searched(capacity_per_s: float, search: Search) -> Goodput:
    """Of a server that is in time up to its capacity, and always late above it."""

    async def try_rate(rate_per_s: float) -> Measures:
        ttft_s = 0.5 if rate_per_s <= capacity_per_s else 2.0
        outcomes = [outcome(i / 10, ttft_s, num_tokens=1) for i in range(100)]
        return measure(outcomes, window=Window(from_s=5.0, to_s=10.0), limits=LIMITS, cpu=IDLE)

    return asyncio.run(find_goodput(search, try_rate))


@given(st.floats(2, 50), st.floats(2, 50), st.sampled_from([0.3, 0.1, 0.05]))
def test_the_capacity_lies_between_the_bounds(
    capacity_per_s: float, first_rate_per_s: float, precision: float
) -> None:
    search = Search(first_rate_per_s=first_rate_per_s, precision=precision)
    found = searched(capacity_per_s, search)
    assert found.low_per_s <= capacity_per_s < found.high_per_s
    assert found.high_per_s - found.low_per_s <= precision * found.low_per_s
    assert len(found.points) <= MAX_POINTS


RATES = [
    # capacity first  rates tried
    (10.0, 4.0, [4.0, 8.0, 16.0, 12.0, 10.0, 11.0]),
    (10.0, 12.0, [12.0, 6.0, 9.0, 10.5, 9.75]),
    (0.0, 1.0, [2.0**-i for i in range(MAX_HALVINGS + 1)]),
    (inf, 1.0, [2.0**i for i in range(MAX_DOUBLINGS + 1)]),
]


@pytest.mark.parametrize(("capacity_per_s", "first_per_s", "want"), RATES)
def test_rates(capacity_per_s: float, first_per_s: float, want: list[float]) -> None:
    found = searched(capacity_per_s, Search(first_rate_per_s=first_per_s))
    assert [p.rate_per_s for p in found.points] == pytest.approx(want)


def test_no_rate_is_tried_at_which_too_little_would_arrive() -> None:
    found = searched(0.0, Search(first_rate_per_s=8.0, least_rate_per_s=3.0))
    assert [p.rate_per_s for p in found.points] == [8.0, 4.0]
    assert found.low_per_s == 0.0


def test_no_rate_above_one_that_missed_counts() -> None:
    found = Goodput(points=[point(4, 95), point(5, 80), point(6, 99)], target=0.9)
    assert (found.low_per_s, found.high_per_s) == (4, 5)


def test_a_growing_backlog_misses_whatever_was_attained_so_far() -> None:
    found = Goodput(points=[point(4, 95), point(5, 100, is_steady=False)], target=0.9)
    assert (found.low_per_s, found.high_per_s) == (4, 5)


SURE = [
    # id              point                             sure
    ("well above", point(1, 100), True),
    ("well below", point(1, 50), True),
    ("near", point(1, 93), False),
    ("near, of few", point(1, 10, num_all=10), False),
    ("growing", point(1, 93, is_steady=False), True),
]


@pytest.mark.parametrize(("tried", "want"), [c[1:] for c in SURE], ids=[c[0] for c in SURE])
def test_whether_chance_explains_it(tried: Point, want: bool) -> None:
    assert tried.is_sure(0.9) == want


VERDICTS = [
    ("between", [point(4, 95), point(5, 80)], None, "4 requests/s attained 90%, 5 did not"),
    ("per GPU", [point(4, 95), point(5, 80)], 8, "4 requests/s (0.5 per GPU) attained"),
    ("all attained", [point(4, 95)], None, "at least 4 requests/s"),
    ("none attained", [point(4, 5), point(2, 5)], None, "below 2 requests/s"),
]


@pytest.mark.parametrize(
    ("points", "num_gpus", "says"), [c[1:] for c in VERDICTS], ids=[c[0] for c in VERDICTS]
)
def test_verdicts(points: list[Point], num_gpus: int | None, says: str) -> None:
    assert says in verdict(Goodput(points=points, target=0.9), num_gpus)
