"""Ejection: who deserves it, for how long, and that enough of every pool is always left."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.outliers import (
    FORGIVE_S,
    INSTANCE,
    MAX_EJECTED_S,
    PAIR,
    WINDOW_S,
    Limits,
    Record,
    honoured,
    rows_without,
    slow_rows,
    with_bad_pairs,
)
from policy.table import Phase
from tests.policy.fleets import ROWS, D, P, row, table

STORIES = [
    # id, what happened every second (o well, x not), limits, ejected after it
    ("two failures in a row", "xx", INSTANCE, False),
    ("three", "xxx", INSTANCE, True),
    ("three, one between", "xxox", INSTANCE, False),
    ("one of a pair", "x", PAIR, True),
    ("none of a pair", "ooo", PAIR, False),
    ("six of ten", "xoxxoxxoxx", Limits(9), True),
    ("five of ten", "oxoxoxoxox", Limits(9), False),
    ("six of nine", "xoxxoxxox", Limits(9), False),
]


def after(text: str, limits: Limits, record: Record | None = None, start_s: float = 0.0) -> Record:
    record = record or Record()
    for second, letter in enumerate(text):
        record = record.after(start_s + 0.9 * second, limits, ok=letter == "o")
    return record


@pytest.mark.parametrize(
    ("text", "limits", "want"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES]
)
def test_who_is_ejected(text: str, limits: Limits, want: bool) -> None:
    now_s = 0.9 * (len(text) - 1)
    assert after(text, limits).is_ejected(now_s) == want


def test_longer_each_time_and_forgiven_in_the_end() -> None:
    record, now_s, lengths = Record(), 0.0, []
    for _ in range(40):
        record = after("xxx", INSTANCE, record, now_s)
        lengths.append(record.ejected_until_s - (now_s + 1.8))
        now_s = record.ejected_until_s
    assert lengths == pytest.approx([min(n, MAX_EJECTED_S) for n in range(1, 41)])
    assert record.num_unforgiven(now_s + FORGIVE_S) == 39
    assert record.num_unforgiven(now_s + 40 * FORGIVE_S) == 0


def test_what_ends_during_an_ejection_does_not_prolong_it() -> None:
    ejected = after("xxx", INSTANCE)
    assert after("xxx", INSTANCE, ejected, start_s=ejected.ejected_until_s - 2.0) == ejected


@given(
    events=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=80),
    limits=st.sampled_from([INSTANCE, PAIR]),
)
def test_ejections_are_bounded_and_earned(events: list[tuple[float, bool]], limits: Limits) -> None:
    record, now_s = Record(), 0.0
    for pause_s, ok in events:
        now_s += pause_s
        before, record = record, record.after(now_s, limits, ok=ok)
        if record.is_ejected(now_s) and not before.is_ejected(now_s):
            assert not ok
            assert 0.99 < record.ejected_until_s - now_s < MAX_EJECTED_S + 0.01
        assert record.num_failures <= record.num_events
    assert not record.is_ejected(now_s + MAX_EJECTED_S)


def test_a_window_forgets() -> None:
    often = after("xoxxoxxox", Limits(9))
    assert not often.after(WINDOW_S, Limits(9), ok=False).is_ejected(WINDOW_S)


def test_several_bad_pairs_are_the_fault_of_who_is_in_them() -> None:
    assert with_bad_pairs([("p0", "d0")]) == frozenset()
    assert with_bad_pairs([("p0", "d0"), ("p0", "d1")]) == {"p0"}
    assert with_bad_pairs([("p0", "d0"), ("p1", "d0"), ("p2", "d1")]) == {"d0"}


POOLS = [
    # id, rows, deserved until, ejected
    ("the only one stays", [row(P), row(D)], {0: 5.0, 1: 5.0}, set()),
    ("one of two", [row(P), row(P)], {0: 5.0, 1: 6.0}, {1}),
    ("one of three", [row(D), row(D), row(D)], {0: 7.0, 1: 6.0, 2: 5.0}, {0}),
    ("dead ones carry nothing", [row(P), row(P, alive=False)], {0: 5.0}, set()),
    ("nor do draining ones", [row(P), row(P, draining=True)], {0: 5.0}, set()),
    ("nor other models", [row(P), row(P, fingerprint=1)], {0: 5.0}, set()),
]


@pytest.mark.parametrize(
    ("rows", "until_s", "want"), [p[1:] for p in POOLS], ids=[p[0] for p in POOLS]
)
def test_half_a_pool_at_most(
    rows: list[dict[str, Any]], until_s: dict[int, float], want: set[int]
) -> None:
    assert honoured(table(*rows), until_s) == want


@given(rows=ROWS, deserved=st.sets(st.integers(0, 20)), able=st.sets(st.integers(0, 20)))
def test_somebody_is_always_left(
    rows: list[dict[str, Any]], deserved: set[int], able: set[int]
) -> None:
    fleet = table(*rows)
    ejected = honoured(fleet, dict.fromkeys(deserved, 1.0))
    assert ejected <= deserved
    usable = fleet.alive & ~fleet.draining
    for role in range(4):
        for fingerprint in range(4):
            pool = usable & (fleet.role == role) & (fleet.fingerprint == fingerprint)
            num = int(pool.sum())
            assert sum(bool(pool[r]) for r in ejected) <= num // 2
    mask = np.array([r in able for r in range(len(rows))], dtype=np.bool_)
    left = rows_without(mask, frozenset(deserved))
    assert left.any() == mask.any()
    assert not (left & ~mask).any()


def test_slow_ones_are_slower_than_most() -> None:
    slow = {"prefill_scale": 5.0}
    assert slow_rows(table(row(P, **slow), row(P), row(P)), Phase.PREFILL) == {0}
    assert slow_rows(table(row(P, **slow), row(P), row(P)), Phase.DECODE) == frozenset()
    # Of two nobody knows which is odd; and all may be slow.
    assert slow_rows(table(row(P, **slow), row(P), row(D), row(D)), Phase.PREFILL) == frozenset()
    assert slow_rows(table(row(P, **slow), row(P, **slow), row(P)), Phase.PREFILL) == frozenset()
