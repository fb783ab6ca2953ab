"""How many instances: arithmetic, then the whole has to pass."""

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.search.intervals import Interval
from planner.search.joint import Counts, instances_for, missing, passes, sized, splits
from planner.search.judges import Criterion
from planner.search.results import Goal
from planner.search.steady import Judged, Judgement

ARITHMETIC = [
    # rate   goodputs       n, m
    (10.0, (3.0, 5.0), (4, 2)),
    (0.3, (0.1, 0.3), (3, 1)),
    (0.1, (5.0, 5.0), (1, 1)),
    (12.0, (4.0,), (3,)),
]


@pytest.mark.parametrize(("rate", "goodputs", "want"), ARITHMETIC)
def test_n_and_m(rate: float, goodputs: tuple[float, ...], want: Counts) -> None:
    assert instances_for(rate, goodputs) == want


def judgement(ttft: float, tpot: float) -> Judgement:
    """Both must be kept by all."""
    shares = {
        "all": (min(ttft, tpot), 1.0),
        "marginal ttft": (ttft, 0.0),
        "marginal tpot": (tpot, 0.0),
    }
    return Judgement(
        rate_per_s=1.0,
        judged=tuple(
            Judged(
                criterion=Criterion(name=name, target=target),
                share=Interval(value=share, low=share, high=share),
            )
            for name, (share, target) in shares.items()
        ),
        is_steady=True,
        is_cut=False,
        num_runs=1,
        num_requests=1,
    )


def needs(prefill: int, decode: int, room: int = 10_000) -> Callable[[Counts], Judgement | None]:
    """A cluster that passes from so many instances on, and that has room for so many."""

    def attempt(counts: Counts) -> Judgement | None:
        if sum(counts) > room:
            return None
        return judgement(min(1.0, counts[0] / prefill), min(1.0, counts[1] / decode))

    return attempt


def test_the_phase_that_misses_grows() -> None:
    assert missing(judgement(0.8, 1.0)) == 0
    assert missing(judgement(1.0, 0.8)) == 1
    # Decode that is full keeps prefill from going on.
    assert missing(judgement(0.1, 0.8)) == 1


SIZED = [
    # id                  needed     begins at    ends at
    ("as it was", (3, 2), (3, 2), (3, 2)),
    ("prefill grows", (5, 2), (3, 2), (5, 2)),
    ("both grow", (4, 4), (3, 2), (4, 4)),
    ("decode shrinks", (3, 1), (3, 9), (3, 1)),
    ("many shrink", (900, 70), (1000, 100), (900, 70)),
    ("from one each", (1, 1), (1, 1), (1, 1)),
]


@pytest.mark.parametrize(
    ("needed", "start", "want"), [c[1:] for c in SIZED], ids=[c[0] for c in SIZED]
)
def test_sizes(needed: Counts, start: Counts, want: Counts) -> None:
    found = sized(start, needs(*needed))
    assert found is not None
    assert found.counts == want
    assert found.judgement.attains
    assert len(found.tried) <= 60


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_what_is_found_passes_and_nothing_can_be_taken_away(
    prefill: int, decode: int, n: int, m: int
) -> None:
    attempt = needs(prefill, decode)
    found = sized((n, m), attempt)
    assert found is not None
    assert found.counts == (prefill, decode)


def test_what_is_no_help_does_not_grow_for_ever() -> None:
    found = sized((3, 2), lambda _: judgement(1.0, 0.2))
    assert found is not None
    assert not found.judgement.attains
    assert len(found.tried) <= 5


def test_the_largest_that_has_room_is_told_where_none_passes() -> None:
    found = sized((2, 2), needs(50, 2, room=10))
    assert found is not None
    assert found.counts == (8, 2)
    assert not found.judgement.attains


def test_what_has_no_room_at_all_is_not_told() -> None:
    assert sized((20, 20), needs(1, 1, room=10)) is None
    assert not passes(None)


def test_a_tied_pair_has_one_count() -> None:
    found = sized((2,), lambda counts: judgement(min(1.0, counts[0] / 6), 1.0))
    assert found is not None
    assert found.counts == (6,)


@given(st.integers(2, 64), st.integers(1, 8), st.integers(1, 8))
def test_splits_leave_no_room_for_another_instance(budget: int, prefill: int, decode: int) -> None:
    costs = {Goal.GPUS: float(prefill)}, {Goal.GPUS: float(decode)}
    made = list(splits({Goal.GPUS: float(budget)}, costs))
    for n, m in made:
        left = budget - n * prefill - m * decode
        assert n >= 1
        assert m >= 1
        assert 0 <= left < min(prefill, decode)
    every = {
        (n, m)
        for n in range(1, budget)
        for m in range(1, budget)
        if 0 <= budget - n * prefill - m * decode < min(prefill, decode)
    }
    assert set(made) == every


def test_the_first_of_several_limits_ends_a_split() -> None:
    budget = {Goal.GPUS: 100.0, Goal.COST: 24.8 * 3 + 10.0, Goal.POWER: inf}
    reads = {Goal.GPUS: 1.0, Goal.COST: 24.8, Goal.POWER: 700.0}
    writes = {Goal.GPUS: 1.0, Goal.COST: 10.0, Goal.POWER: 0.0}
    assert list(splits(budget, (reads, writes))) == [(1, 5), (2, 3), (3, 1)]
