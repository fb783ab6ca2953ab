"""Stories of online planning: what routers tell reaches the planner, what it says the cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.errors import NoProfile
from core.member import Role
from deploy.controller.deployment import Deployment
from deploy.controller.online import LOOK_S, NothingServed, Online
from planner.online.ground import Forecast, Sizes
from planner.online.online import Decision, Stage
from planner.online.replan import Replan
from planner.online.window import Recent
from rpc.pb import cluster_pb2
from tests.deploy.controller.stage import Stage as Theatre
from tests.deploy.controller.stage import Story, deployed, play

WARM_S = 50.0
"""What came before anybody looked is not counted."""

P, D = Role.PREFILL, Role.DECODE
ONLINE = "[online]\nenabled = true\nwindow_s = 100.0\n"
OTHER = Sizes(prefill=1, decode=3)


def enabled(prefill: int = 2, decode: int = 2) -> Deployment:
    base = deployed(prefill, decode)
    return Deployment(plan_toml=base.plan_toml + ONLINE, model=base.model)


@dataclass
class FakePlanner:
    """Implements Planner, and the watch that it gives. Says what it was told to say, once."""

    says: Sizes | None = None
    seen: list[tuple[Recent, Sizes]] = field(default_factory=list)
    num_watches: int = 0
    knows_nothing: bool = False

    def watch(self, deployment: Deployment) -> "FakePlanner":
        if self.knows_nothing:
            raise NoProfile("a GPU", (), "name one")
        self.num_watches += 1
        return self

    def look(self, now_s: float, recent: Recent, in_force: Sizes) -> Decision:
        self.seen.append((recent, in_force))
        change, self.says = self.says, None
        return Decision(
            stage=Stage.PLANNED if change else Stage.STEADY,
            change=change,
            replan=None,
            attainment=0.75,
            rate_per_s=recent.rate_per_s,
            reasons=("because",),
        )

    def replan(self, deployment: Deployment, recent: Recent, in_force: Sizes) -> Replan:
        self.seen.append((recent, in_force))
        known = Forecast(attainment=1.0, goodput_per_s=1.0)
        return Replan(
            before=in_force,
            after=self.says or in_force,
            forecast_before=known,
            forecast_after=known,
            rate_per_s=recent.rate_per_s,
            reasons=("because",),
        )


async def inline(work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - as Aside
    return work(*arguments)


@asynccontextmanager
async def watching(
    theatre: Theatre, planner: FakePlanner, deployment: Deployment
) -> AsyncIterator[Online]:
    online = Online(theatre.controller, theatre.calls, planner, theatre.clock, inline)
    async with theatre.running(deployment), asyncio.TaskGroup() as group:
        task = group.create_task(online.run())
        yield online
        task.cancel()


def served(num: int, output_tokens: int = 8) -> list[cluster_pb2.EndedRequest]:
    return [
        cluster_pb2.EndedRequest(
            arrived_ago_s=1.0 + i,
            num_prompt_tokens=100,
            num_hit_tokens=10,
            num_output_tokens=output_tokens,
            ttft_s=0.1,
            tpot_s=0.01,
            status="OK",
        )
        for i in range(num)
    ]


async def a_change_is_put_in_force(stage: Theatre) -> None:
    planner = FakePlanner()
    async with watching(stage, planner, enabled()) as online:
        before = stage.names()
        planner.says = OTHER
        await stage.until(lambda: len(stage.names(D, serving=True)) == 3)
        # Roles changed, and nothing was started or drained for it.
        assert stage.names() == before
        assert not stage.controller.waits_for
        record = stage.controller.record
        assert record is not None
        assert Sizes.of(record.in_force.plan) == OTHER
        assert Sizes.of(record.deployment.plan) == Sizes(prefill=2, decode=2)
        assert stage.kept[-1].sizes == record.sizes
        # It is asked about what is in force now.
        await stage.until(lambda: planner.seen[-1][1] == OTHER)
        state = online.state()
        assert state is not None
        assert state.decision == "because"
        assert state.attainment == 0.75


async def what_a_person_puts_again_keeps_its_sizes(stage: Theatre) -> None:
    planner = FakePlanner(says=OTHER)
    async with watching(stage, planner, enabled()):
        await stage.until(lambda: len(stage.names(D, serving=True)) == 3)
        edition = stage.controller.put(enabled())
        assert not stage.controller.first_actions(enabled())
        await stage.settled()
        assert len(stage.names(D)) == 3
        # Another plan is a person's word, and watched anew.
        assert stage.controller.put(enabled(3, 1)) == edition + 1
        await stage.settled()
        assert len(stage.names(D)) == 1
        await stage.until(lambda: planner.num_watches == 2)


async def requests_are_told_once(stage: Theatre) -> None:
    planner = FakePlanner()
    async with watching(stage, planner, enabled()) as online:
        await asyncio.sleep(WARM_S)
        stage.calls.served = served(5)
        await stage.until(lambda: bool(planner.seen) and planner.seen[-1][0].num_requests == 5)
        await asyncio.sleep(2 * LOOK_S)
        assert planner.seen[-1][0].num_requests == 5
        state = online.state()
        assert state is not None
        assert (state.num_requests, state.mean_output_tokens) == (5, 8.0)
        # The router dies, and its list with it.
        router = stage.one(Role.ROUTER)
        stage.hands.die(router.name)
        stage.calls.served = served(2)
        await stage.until(lambda: planner.seen[-1][0].num_requests == 7)


async def a_router_that_does_not_tell(stage: Theatre) -> None:
    planner = FakePlanner()
    async with watching(stage, planner, enabled()):
        await asyncio.sleep(WARM_S)
        stage.calls.served = served(3)
        stage.calls.refusing["workload"] = 2
        await stage.until(lambda: bool(planner.seen) and planner.seen[-1][0].num_requests == 3)


async def nothing_is_known_to_plan_with(stage: Theatre) -> None:
    planner = FakePlanner(knows_nothing=True)
    async with watching(stage, planner, enabled()):
        await stage.until(lambda: any("no online planning" in line for line in stage.told))
        await stage.settled()


async def a_person_asks(stage: Theatre) -> None:
    """Also where the plan does not ask for online planning."""
    planner = FakePlanner(says=OTHER)
    async with watching(stage, planner, deployed(2, 2)) as online:
        assert online.state() is None
        await asyncio.sleep(WARM_S)
        with pytest.raises(NothingServed, match="0 requests were answered"):
            await online.replan(dry_run=False)
        stage.calls.served = served(30)
        await asyncio.sleep(2 * LOOK_S)
        reply = await online.replan(dry_run=True)
        assert not reply.applied
        assert "[decode]\nreplicas = 3" in reply.plan_toml
        assert stage.controller.record is not None
        assert not stage.controller.record.sizes
        reply = await online.replan(dry_run=False)
        assert reply.applied
        await stage.until(lambda: len(stage.names(D, serving=True)) == 3)
        planner.says = None
        reply = await online.replan(dry_run=False)
        assert (reply.applied, reply.plan_toml, list(reply.reasons)) == (False, "", ["because"])


STORIES: list[Callable[[Theatre], Awaitable[None]]] = [
    a_change_is_put_in_force,
    what_a_person_puts_again_keeps_its_sizes,
    requests_are_told_once,
    a_router_that_does_not_tell,
    nothing_is_known_to_plan_with,
    a_person_asks,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_story(story: Story) -> None:
    play(story)
