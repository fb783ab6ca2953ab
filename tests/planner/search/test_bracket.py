"""Which rates are tried, and what the tries say."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.search.bracket import (
    MAX_DOUBLINGS,
    MAX_HALVINGS,
    MAX_POINTS,
    Search,
    Try,
    bracket,
    next_rate,
)


def tried(capacity_per_s: float, search: Search) -> list[Try]:
    """All rates up to a capacity attain, and none above it."""
    tries: list[Try] = []
    while (rate_per_s := next_rate(tries, search)) is not None:
        tries.append(Try(rate_per_s, rate_per_s <= capacity_per_s))
    return tries


RATES = [
    # id           capacity  search                                      rates
    ("up", 10.0, Search(first_rate_per_s=4.0), [4.0, 8.0, 16.0, 12.0, 10.0, 11.0]),
    ("down", 10.0, Search(first_rate_per_s=12.0), [12.0, 6.0, 9.0, 10.5, 9.75]),
    ("never", 0.0, Search(first_rate_per_s=1.0), [2.0**-i for i in range(MAX_HALVINGS + 1)]),
    ("always", inf, Search(first_rate_per_s=1.0), [2.0**i for i in range(MAX_DOUBLINGS + 1)]),
    (
        "not above a bound",
        inf,
        Search(first_rate_per_s=6.0, most_rate_per_s=8.0, precision=0.1),
        [6.0, 7.0, 7.5],
    ),
    (
        "DistServe's quick start",
        1.6,
        Search(
            first_rate_per_s=2.5,
            most_rate_per_s=5.0,
            least_rate_per_s=0.125,
            resolution_per_s=0.25,
            precision=0.0,
        ),
        [2.5, 1.25, 1.875, 1.5625, 1.71875],
    ),
]


@pytest.mark.parametrize(
    ("capacity_per_s", "search", "rates"), [c[1:] for c in RATES], ids=[c[0] for c in RATES]
)
def test_rates(capacity_per_s: float, search: Search, rates: list[float]) -> None:
    assert [t.rate_per_s for t in tried(capacity_per_s, search)] == pytest.approx(rates)


@given(
    st.floats(1, 99),
    st.floats(1, 99),
    st.sampled_from([0.3, 0.1, 0.05]),
    st.sampled_from([100.0, inf]),
)
def test_a_capacity_lies_between_the_bounds(
    capacity_per_s: float, first_per_s: float, precision: float, most_per_s: float
) -> None:
    search = Search(first_rate_per_s=first_per_s, most_rate_per_s=most_per_s, precision=precision)
    tries = tried(capacity_per_s, search)
    low, high = bracket(tries)
    high = min(high, most_per_s)
    assert len(tries) <= MAX_POINTS
    if low > 0:  # else more than 64 times less than the first rate
        assert low <= capacity_per_s < high
        assert high - low <= precision * low * (1 + 1e-9)


def test_what_attains_above_a_miss_does_not_count() -> None:
    assert bracket([Try(4, True), Try(5, False), Try(6, True)]) == (4, 5)
