"""What is a shift: beyond chance, whatever the bursts, and large."""

from functools import partial

import numpy as np
import pytest

from planner.online.shift import (
    MIN_REQUESTS,
    TO_BEGIN,
    TO_LAST,
    Bar,
    compared,
    distance,
    t_quantile,
)
from planner.online.window import Recent
from planner.search.intervals import t_95
from tests.planner.online.made import even, lengths, moments, recent

WINDOW_S = 600.0
ARRIVALS = [
    # id                    seconds of a burst, times as long without
    ("poisson", 5.0, 0.0),
    ("bursts of 2 s", 2.0, 3.0),
    ("bursts of 10 s", 10.0, 2.0),
    ("bursts of 20 s", 20.0, 1.0),
]
NUM_SEEDS = 200


def load(
    seed: int,
    *,
    rate_per_s: float = 4.0,
    mean: float = 500.0,
    windows: float = 1.0,
    **bursts: float,
) -> Recent:
    rng = np.random.default_rng(seed)
    span_s = windows * WINDOW_S
    at_s = moments(rng, rate_per_s, span_s, burst_s=bursts["burst_s"], idle=bursts["idle"])
    num = len(at_s)
    return recent(at_s, lengths(rng, mean, num), lengths(rng, 100.0, num), span_s=span_s)


def shifted(reference: Recent, seen: Recent, bar: Bar = TO_BEGIN) -> list[str]:
    return [each.name for each in compared(reference, seen, bar) if each.is_shifted]


@pytest.mark.parametrize(
    ("burst_s", "idle"), [c[1:] for c in ARRIVALS], ids=[c[0] for c in ARRIVALS]
)
def test_bursts_alone_are_hardly_ever_a_shift(burst_s: float, idle: float) -> None:
    made = partial(load, burst_s=burst_s, idle=idle)
    alarms = [shifted(made(seed), made(1000 + seed)) for seed in range(NUM_SEEDS)]
    assert sum(map(bool, alarms)) / NUM_SEEDS <= 2 * TO_BEGIN.alpha


@pytest.mark.parametrize(
    ("burst_s", "idle"), [c[1:] for c in ARRIVALS], ids=[c[0] for c in ARRIVALS]
)
def test_both_looks_that_a_plan_takes_are_never_wrong(burst_s: float, idle: float) -> None:
    """Two windows that have nothing in common, one reference of four."""
    made = partial(load, burst_s=burst_s, idle=idle)
    for seed in range(NUM_SEEDS):
        reference = made(seed, windows=4.0)
        both = (shifted(reference, made(1000 + seed)), shifted(reference, made(2000 + seed)))
        assert not all(both), seed


FOUND = [
    # id                    burst, idle, what changes                    least share of 50 seeds
    ("poisson, twice the rate", 5.0, 0.0, {"rate_per_s": 8.0}, "rate", 1.0),
    ("poisson, half the rate", 5.0, 0.0, {"rate_per_s": 2.0}, "rate", 1.0),
    ("bursts of 2 s, twice", 2.0, 3.0, {"rate_per_s": 8.0}, "rate", 0.9),
    ("bursts of 10 s, twice", 10.0, 2.0, {"rate_per_s": 8.0}, "rate", 0.4),
    ("bursts of 10 s, longer prompts", 10.0, 2.0, {"mean": 1000.0}, "prompts", 1.0),
]


@pytest.mark.parametrize(
    ("burst_s", "idle", "change", "name", "share"),
    [c[1:] for c in FOUND],
    ids=[c[0] for c in FOUND],
)
def test_a_shift_is_found(
    burst_s: float, idle: float, change: dict[str, float], name: str, share: float
) -> None:
    made = partial(load, burst_s=burst_s, idle=idle)
    found = [
        name in shifted(made(seed, windows=4.0), made(1000 + seed, **change)) for seed in range(50)
    ]
    assert sum(found) / 50 >= share


def test_what_is_beyond_chance_and_small_is_no_shift() -> None:
    rng = np.random.default_rng(0)
    num = 60_000
    before = recent(even(100.0, 600.0), lengths(rng, 500.0, num), 50, span_s=600.0)
    now = recent(even(110.0, 540.0), lengths(rng, 540.0, 59_400), 50, span_s=540.0)
    assert not shifted(before, now)
    rate, prompts, _ = compared(before, now, TO_BEGIN)
    assert "rate as it was: 100 before, 110 now" in str(rate)
    assert "prompts as it was" in str(prompts)


def test_few_that_are_much_longer_are_a_shift() -> None:
    """One in twelve answers is ten times as long: D is small, the load 1.75 times as much."""
    outputs = np.full(2400, 50)
    outputs[::12] = 500
    before = recent(even(4.0, 600.0), 500, 50, span_s=600.0)
    assert shifted(before, recent(even(4.0, 600.0), 500, outputs, span_s=600.0)) == ["answers"]
    assert distance(np.full(2400, 50), outputs) < TO_BEGIN.distance


def test_a_cached_part_of_prompts_is_a_shift() -> None:
    rng = np.random.default_rng(1)
    prompts = lengths(rng, 500.0, 2400) + 400
    before = recent(even(4.0, 600.0), prompts, 50, span_s=600.0)
    now = recent(even(4.0, 600.0), prompts, 50, span_s=600.0, hits=350)
    assert shifted(before, now) == ["prompts"]


def test_of_few_requests_nothing_is_said() -> None:
    few = recent(even(1.0, MIN_REQUESTS - 1), 1, 1, span_s=MIN_REQUESTS)
    many = recent(even(1.0, 600.0), 1000, 100, span_s=600.0)
    assert not compared(many, few, TO_BEGIN)
    assert not compared(few, many, TO_BEGIN)


@pytest.mark.parametrize("seed", range(20))
def test_what_begins_a_shift_lets_it_last(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = partial(load, burst_s=10.0, idle=float(rng.integers(0, 3)))
    change = {"rate_per_s": rng.uniform(2.0, 8.0), "mean": rng.uniform(300.0, 900.0)}
    pair = made(seed), made(1000 + seed, **change)
    assert set(shifted(*pair, TO_BEGIN)) <= set(shifted(*pair, TO_LAST))


@pytest.mark.parametrize("freedom", [5, 10, 30, 60, 1000])
def test_student_is_that_of_the_search(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(t_95(freedom), rel=2e-3)
