"""Buckets, and shares of one among routers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.quota import FLOOR, Bucket, wanted_share

TAKES = [
    # id                               level tokens capacity taken left
    ("enough", 10, 10, 100, True, 0),
    ("not enough", 10, 11, 100, False, 10),
    ("more than fits takes a full one, and owes the rest", 100, 150, 100, True, -50),
    ("but not one that is not full", 99, 150, 100, False, 99),
]


@pytest.mark.parametrize(
    ("level", "tokens", "capacity", "taken", "left"),
    [c[1:] for c in TAKES],
    ids=[c[0] for c in TAKES],
)
def test_take(level: float, tokens: float, capacity: float, *, taken: bool, left: float) -> None:
    bucket = Bucket(level, 0.0)
    assert bucket.take(tokens, capacity) == taken
    assert bucket.level == left


def test_the_hint_is_when_it_will_be_there() -> None:
    bucket = Bucket(10.0, 5.0)
    wait_s = bucket.wait_s(60, 20.0, 100.0)
    assert wait_s == 2.5
    bucket.refill(20.0, 100.0, 5.0 + wait_s)
    assert bucket.take(60, 100.0)


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(10.0, 5.0)
    bucket.refill(20.0, 100.0, 3.0)
    assert bucket.level == 10.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_who_sees_the_same_demands_wants_no_more_than_all(demands: list[float]) -> None:
    shares = [wanted_share(d, sum(demands), len(demands)) for d in demands]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= FLOOR / len(demands) * 0.999
