"""The watch: when a plan is looked for, and when everything is left alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from core.member import Role
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.online.ground import Ground, Sizes
from planner.online.online import Decision, Online, Stage, Watching
from planner.online.replan import Bounds
from planner.online.window import Recent
from tests.planner.online.made import lengths, moments, recent
from tests.planner.search.fakes import fleet

ONE = ParallelLayout()
GROUND = Ground(
    fleet=fleet(),
    layouts={Role.PREFILL: ONE, Role.DECODE: ONE, Role.MIXED: ONE},
    slo=Slo(ttft_s=0.5, tpot_s=0.03),
    target=0.9,
)
BOUNDS = Bounds(min_instances=4, max_instances=4)
WATCHING = Watching(window_s=200.0, cool_down_s=100.0)
LOOK_S = 10.0
BEGIN = Sizes(prefill=3, decode=1)
"""Suits long prompts with short answers."""
PROMPTS, ANSWERS = (800.0, 10.0), (60.0, 200.0)

Load = Callable[[float], tuple[float, float, float]]
"""From a moment to a rate, and to the mean lengths of prompts and answers."""


def requests(load: Load, until_s: float, *, seed: int = 0, burst_s: float = 5.0) -> Recent:
    """In pieces of ten seconds."""
    rng = np.random.default_rng(seed)
    idle = 0.0 if burst_s == 5.0 else 2.0
    unit = moments(rng, 1.0, until_s * 12, burst_s=burst_s, idle=idle)
    steps = np.arange(0.0, until_s, LOOK_S)
    rates = np.array([load(at_s)[0] for at_s in steps])
    expected = np.concatenate(([0.0], np.cumsum(rates * LOOK_S)))
    at_s = np.interp(unit, expected, [*steps, until_s])
    at_s = at_s[(unit < expected[-1])]
    means = [load(float(at))[1:] for at in at_s]
    prompts = lengths(rng, 1.0, len(at_s))
    spread = rng.lognormal(-0.1, 0.4, len(at_s))
    prompts = np.maximum(1, spread * [mean for mean, _ in means]).astype(np.int64)
    outputs = np.maximum(1, spread[::-1] * [mean for _, mean in means]).astype(np.int64)
    return recent(at_s, prompts, outputs, span_s=until_s)


def looked(
    online: Online, all_of_it: Recent, *, from_s: float = 0.0, in_force: Sizes = BEGIN
) -> list[tuple[float, Decision]]:
    """At every look; changes are in force at once."""
    told = []
    for at_s in np.arange(from_s + LOOK_S, all_of_it.end_s + 1, LOOK_S):
        begin_s = max(all_of_it.begin_s, float(at_s) - WATCHING.window_s)
        decision = online.look(float(at_s), all_of_it.between(begin_s, float(at_s)), in_force)
        in_force = decision.change or in_force
        told.append((float(at_s), decision))
    return told


def online(*, dry_run: bool = False, reference: Recent | None = None) -> Online:
    return Online(GROUND, BOUNDS, watching=WATCHING, dry_run=dry_run, reference=reference)


def changes(told: list[tuple[float, Decision]]) -> list[tuple[float, Sizes]]:
    return [(at_s, decision.change) for at_s, decision in told if decision.change is not None]


def plans(told: list[tuple[float, Decision]]) -> list[float]:
    return [at_s for at_s, decision in told if decision.stage is Stage.PLANNED]


def steady(at_s: float) -> tuple[float, float, float]:
    return (8.0, *PROMPTS)


def shifts_at(begin_s: float, end_s: float = 1e9) -> Load:
    return lambda at_s: (8.0, *(ANSWERS if begin_s <= at_s < end_s else PROMPTS))


def test_first_it_learns_then_it_looks_once() -> None:
    told = looked(online(), requests(steady, 600.0))
    stages = [decision.stage for _, decision in told]
    assert stages[:18] == [Stage.LEARNING] * 18
    assert plans(told) == [190.0]
    assert not changes(told)
    assert set(stages[19:]) == {Stage.STEADY}


def test_a_plan_whose_history_is_known_is_left_alone() -> None:
    reference = requests(steady, 600.0, seed=1)
    assert not plans(looked(online(reference=reference), requests(steady, 600.0)))


def test_a_lasting_shift_changes_the_plan_once() -> None:
    told = looked(online(), requests(shifts_at(400.0), 1200.0))
    [(at_s, after)] = changes(told)
    assert after.decode > after.prefill
    assert 400.0 + WATCHING.window_s <= at_s <= 400.0 + 1.5 * WATCHING.window_s
    decision = dict(told)[at_s]
    assert decision.replan is not None
    assert any(reason.startswith("answers shifted") for reason in decision.reasons)
    stages = [each.stage for _, each in told]
    assert stages[-1] is Stage.STEADY
    assert Stage.COOLING_DOWN in stages


@pytest.mark.parametrize("lasts_s", [30.0, 80.0, 150.0])
def test_a_shift_that_does_not_last_changes_nothing(lasts_s: float) -> None:
    told = looked(online(), requests(shifts_at(400.0, 400.0 + lasts_s), 1000.0))
    assert plans(told) == [190.0]
    assert not changes(told)


def test_after_a_change_there_is_peace() -> None:
    back = requests(shifts_at(400.0, 640.0), 1400.0)
    first, second = (at_s for at_s, _ in changes(looked(online(), back)))
    assert second - first >= WATCHING.cool_down_s
    in_between = [d.stage for at_s, d in looked(online(), back) if first < at_s < first + 100.0]
    assert set(in_between) == {Stage.COOLING_DOWN}


def test_a_dry_run_only_tells() -> None:
    told = looked(online(dry_run=True), requests(shifts_at(400.0), 1200.0))
    assert not changes(told)
    [_, at_s] = plans(told)
    decision = dict(told)[at_s]
    assert decision.replan is not None
    assert decision.replan.is_change
    assert any(reason.startswith("dry run: ") for reason in decision.reasons)


def test_whoever_else_changes_the_plan_is_left_alone_too() -> None:
    seen = requests(steady, 400.0)
    watch = online()
    looked(watch, seen.between(0.0, 300.0))
    other = Sizes(prefill=2, decode=2)
    for at_s in (310.0, 390.0):
        decision = watch.look(at_s, seen.between(at_s - 200.0, at_s), other)
        assert decision.stage is Stage.COOLING_DOWN
    assert watch.look(420.0, seen.between(200.0, 400.0), other).stage is Stage.STEADY


def test_an_idle_cluster_is_left_alone() -> None:
    idle = requests(lambda at_s: (8.0 if at_s < 400.0 else 0.02, *PROMPTS), 1000.0)
    told = looked(online(), idle)
    assert not changes(told)
    assert told[-1][1].stage in (Stage.STEADY, Stage.LEARNING)


def test_a_cluster_that_was_idle_at_first_is_watched_all_the_same() -> None:
    begun = requests(lambda at_s: (0.05 if at_s < 600.0 else 8.0, *ANSWERS), 1200.0)
    told = looked(online(), begun)
    assert plans(told)[0] > 600.0
    [(_, after)] = changes(told)
    assert after.decode > after.prefill


def test_failures_count_as_missed() -> None:
    seen = requests(steady, 300.0)
    half = replace(seen, is_ok=np.arange(seen.num_requests) % 2 == 0)
    decision = online().look(300.0, half.between(100.0, 300.0), BEGIN)
    assert decision.attainment == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("burst_s", [5.0, 4.0], ids=["poisson", "in bursts"])
def test_twice_the_rate_is_found_in_time(seed: int, burst_s: float) -> None:
    """At most three windows after it, 60 looks; and nothing before it."""
    double = requests(
        lambda at_s: (8.0 if at_s < 1000.0 else 16.0, *PROMPTS), 1600.0, seed=seed, burst_s=burst_s
    )
    reference = requests(steady, 800.0, seed=100 + seed, burst_s=burst_s)
    found = plans(looked(online(reference=reference), double, from_s=300.0))
    assert found
    assert 1000.0 < found[0] <= 1600.0
