"""The load shifts three times, as `shift_spec` says; the controller follows it, once each time.

Controller and planner are the real ones, on a virtual clock; instances and requests are simulated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from planner.online.ground import Sizes
from planner.online.history import history_of
from planner.online.online import Decision, Online, Stage, Watching
from planner.online.replan import Bounds, replan
from planner.online.window import Recent
from planner.search.candidates import Limits
from planner.search.plan import plan
from planner.search.question import Affinity, Question
from planner.search.results import Goal
from planner.search.trials import published
from planner.sim.simulate import simulate
from planner.workload.presets import load_workload
from tests.deploy.controller.conducted import conducted
from tests.planner.online import shift_spec as spec
from tests.planner.online.world import (
    Changed,
    World,
    ground,
    offered,
    one_after_the_other,
    segment,
    watched,
    whole_trace,
)

BOUNDS = Bounds(min_instances=spec.MIN_INSTANCES, max_instances=spec.MAX_INSTANCES)
EVERYTHING = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One segment of a run."""

    name: str
    before: Sizes
    """As it begins."""
    changes: tuple[Changed, ...]
    offline: Sizes
    """What the planner makes of the whole trace of it, from `before` on."""
    attainment: float
    settled: float
    """Attainment of the last third of it."""
    num_looks: int
    """Until its layout was in force; 0: it was from the start."""

    @property
    def after(self) -> Sizes:
        return self.changes[-1].after if self.changes else self.before


def online() -> Online:
    watching = Watching(window_s=spec.WINDOW_S, cool_down_s=spec.COOL_DOWN_S)
    return Online(ground(), BOUNDS, watching=watching)


def never(now_s: float, recent: Recent, in_force: Sizes) -> Decision:
    """A controller that never changes anything."""
    return Decision(
        stage=Stage.STEADY,
        change=None,
        replan=None,
        attainment=recent.attainment(spec.SLO),
        rate_per_s=recent.rate_per_s,
        reasons=(),
    )


def run(look: Callable[[float, Recent, Sizes], Decision]) -> list[Part]:
    made = [segment(preset, speed) for _, preset, speed in spec.SEGMENTS]
    world = World(ground=ground(), traffic=one_after_the_other(made), sizes=spec.START)
    conducted(world, look, spec.SEGMENT_S * len(made))
    parts, before = list[Part](), spec.START
    for number in range(len(made)):
        parts.append(_part(world, number, before))
        before = parts[-1].after
    return parts


def _part(world: World, number: int, before: Sizes) -> Part:
    begin_s, end_s = number * spec.SEGMENT_S, (number + 1) * spec.SEGMENT_S
    changes = tuple(each for each in world.history if begin_s < each.at_s <= end_s)
    late_s = changes[-1].at_s - begin_s if changes else 0.0
    return Part(
        name=spec.SEGMENTS[number][0],
        before=before,
        changes=changes,
        offline=offline(number, before),
        attainment=world.attainment(begin_s, end_s),
        settled=world.attainment(end_s - spec.SEGMENT_S / 3, end_s),
        num_looks=round(late_s / spec.LOOK_S),
    )


@cache
def offline(number: int, before: Sizes) -> Sizes:
    """The same planner, which is shown all that is to come instead of what came last."""
    _, preset, speed = spec.SEGMENTS[number]
    history = history_of(
        offered(whole_trace(preset, speed)),
        slo=spec.SLO,
        target=spec.TARGET,
        max_played=EVERYTHING,
    )
    return replan(ground(), history, before, BOUNDS).after


def follows(parts: list[Part]) -> None:
    """What is promised of a controller."""
    for part in parts:
        assert len(part.changes) <= 1, part
        assert part.after == part.offline, part
        assert part.num_looks <= spec.MAX_LOOKS, part
        assert part.settled >= spec.TARGET, part
    assert not parts[0].changes, "before the first shift nothing has shifted"


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return run(online().look)


@pytest.mark.timeout(600)  # on cores that are shared with others, the simulator compiled before
def test_the_plan_follows_each_shift_with_one_change(parts: list[Part]) -> None:
    print(f"\n{'segment':16}{'looks':>6}{'changes':>8}  {'layout':24}attained  in its last third")
    for part in parts:
        print(
            f"{part.name:16}{part.num_looks:6}{len(part.changes):8}  {part.after!s:24}"
            f"{part.attainment:8.3f}{part.settled:8.3f}"
        )
    follows(parts)


@pytest.mark.timeout(600)
def test_a_controller_that_never_changes_does_not(parts: list[Part]) -> None:
    without = run(never)
    with pytest.raises(AssertionError):
        follows(without)
    assert any(part.offline != spec.START for part in without)
    assert min(part.settled for part in without) < spec.TARGET
    assert sum(part.attainment for part in parts) > sum(part.attainment for part in without)


@pytest.mark.timeout(600)
def test_the_search_divides_as_many_instances_alike(parts: list[Part]) -> None:
    """`baton plan` with so many GPUs, one to an instance, and the same trace as it was recorded."""
    for part, (_, preset, _) in zip(parts, spec.SEGMENTS, strict=True):
        workload = load_workload(preset, slo=spec.SLO, target=spec.TARGET)
        question = Question(
            fleet=ground().fleet,
            workload=workload,
            simulate=simulate,
            goal=Goal.GOODPUT,
            max_gpus=part.after.total,
            affinity=Affinity.HIGH,
            limits=Limits(max_gpus=1),
            sampling=published(offered(whole_trace(preset, 1.0)).num_requests),
            precision=0.02,
            num_simulated=2,
        )
        best = plan(question).best
        assert best is not None
        assert best.candidate == ground().candidate(part.after)


@pytest.mark.timeout(600)
def test_bursts_are_no_shift() -> None:
    """The coding trace four times over: between 0 and 632 requests come in a minute of it."""
    span_s = 2 * spec.SEGMENT_S
    _, preset, speed = spec.SEGMENTS[0]
    world = World(ground=ground(), traffic=segment(preset, speed, span_s), sizes=spec.START)
    told = watched(world, online().look, span_s)
    assert not world.history
    stages = [decision.stage for _, decision in told]
    assert stages.count(Stage.PLANNED) == 1, "what the first plan rests on is looked at once"
    assert stages.count(Stage.STEADY) > 100
