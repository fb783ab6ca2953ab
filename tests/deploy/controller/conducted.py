"""A controller whose routers tell what the simulated cluster of a world served."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.member import Role
from deploy.controller.deployment import Deployment
from deploy.controller.online import LOOK_S, Online
from planner.online.ground import Sizes
from planner.online.online import Decision
from planner.online.replan import Replan
from planner.online.window import Recent
from rpc.pb import cluster_pb2
from tests.deploy.controller.stage import FakeCalls, Stage, deployed, play
from tests.planner.online import shift_spec as spec
from tests.planner.online.world import Look, World

assert LOOK_S == spec.LOOK_S, "the spec says what the controller does"


@dataclass
class Worldly:
    """Implements Planner, and the watch it gives: what is decided becomes true in the world."""

    world: World
    decide: Look
    now_s: Callable[[], float]
    """Of the world."""
    told: list[Decision] = field(default_factory=list)

    def watch(self, deployment: Deployment) -> "Worldly":
        return self

    def look(self, now_s: float, recent: Recent, in_force: Sizes) -> Decision:
        assert in_force == self.world.sizes
        decision = self.decide(now_s, recent, in_force)
        if decision.change is not None:
            self.world.change(self.now_s(), decision.change)
        self.told.append(decision)
        return decision

    def replan(self, deployment: Deployment, recent: Recent, in_force: Sizes) -> Replan:
        raise AssertionError("nobody asks for it here")


class WorldCalls(FakeCalls):
    """Routers tell what has ended in the world by now."""

    def __init__(self, base: FakeCalls, worldly: Worldly) -> None:
        super().__init__(base.hands)
        self._worldly = worldly

    async def workload(self, address: str, after: int) -> cluster_pb2.WorkloadReply:
        """See Calls."""
        world, now_s = self._worldly.world, self._worldly.now_s()
        num = int(np.searchsorted(world.ends_s, now_s))
        requests = [
            cluster_pb2.EndedRequest(
                arrived_ago_s=now_s - each.arrived_at_s,
                num_prompt_tokens=each.num_prompt_tokens,
                num_hit_tokens=each.num_hit_tokens,
                num_output_tokens=each.num_output_tokens,
                ttft_s=each.ttft_s,
                tpot_s=each.tpot_s,
                status=each.status,
            )
            for each in world.told[after:num]
        ]
        return cluster_pb2.WorkloadReply(requests=requests, next=num, incarnation="the only one")


def conducted(world: World, decide: Look, until_s: float) -> list[Decision]:
    """Run a controller over the world's time; its members are as the world's plan at the end."""
    told: list[Decision] = []

    async def story(stage: Stage) -> None:
        start = world.sizes
        async with stage.running(_deployment(start)):
            before = stage.names()
            began_at_s = stage.clock.now_s()
            worldly = Worldly(world, decide, lambda: stage.clock.now_s() - began_at_s, told)
            calls = WorldCalls(stage.calls, worldly)
            online = Online(stage.controller, calls, worldly, stage.clock, _inline)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(online.run())
                await asyncio.sleep(until_s)
                task.cancel()
            await stage.settled()
            assert sizes_of(stage) == world.sizes
            # Whoever was there stayed there: roles were changed, and only what was added began.
            assert before <= stage.names()
            assert len(stage.names()) - len(before) == world.sizes.total - start.total

    play(story)
    return told


def sizes_of(stage: Stage) -> Sizes:
    """Of those that serve."""
    roles = [member.role for member in stage.members if member.serves]
    return Sizes(prefill=roles.count(Role.PREFILL), decode=roles.count(Role.DECODE))


def _deployment(start: Sizes) -> Deployment:
    base = deployed(start.prefill, start.decode)
    online = (
        f"[online]\nenabled = true\nwindow_s = {spec.WINDOW_S}\n"
        f"cool_down_s = {spec.COOL_DOWN_S}\nmax_instances = {spec.MAX_INSTANCES}\n"
    )
    return replace(base, plan_toml=base.plan_toml + online)


async def _inline(work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - as Aside
    return work(*arguments)
