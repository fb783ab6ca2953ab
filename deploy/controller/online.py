"""Planning from what the routers served of late: asks them, and tells the controller."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.clock import Clock
from core.errors import BatonError, WrongState
from core.member import Role
from core.plan_text import plan_text, with_replicas
from core.waiting import wait_at_most
from deploy.controller.calls import Calls
from deploy.controller.controller import Controller
from deploy.controller.deployment import Deployment
from deploy.controller.planning import Planner, Watch
from deploy.controller.record import Record
from deploy.controller.seen import Seen
from planner.online.follow import Place, Places
from planner.online.ground import Sizes
from planner.online.history import can_be_played
from planner.online.window import Ended, Window
from policy.table import Ints
from rpc.pb import cluster_pb2, controller_pb2

if TYPE_CHECKING:
    from planner.online.online import Decision

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between two questions to a router; its list holds 4,096: nothing is missed below 400 a second."""


Aside = Callable[..., Awaitable[Any]]


class NothingServed(WrongState):
    """Too little was served of late to plan from it."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """One deployment, and who watches it: another one is watched anew."""

    deployment: Deployment
    window: Window
    watch: Watch | None
    """None where the plan does not ask for it, or nothing is known to plan with."""


class Online:
    """Asks every router what ended, all the time, so that a person may ask for a plan at any."""

    def __init__(
        self,
        controller: Controller,
        calls: Calls,
        planner: Planner,
        clock: Clock,
        aside: Aside = asyncio.to_thread,
    ) -> None:
        """`aside` runs what takes seconds, without holding the event loop."""
        self._controller, self._calls, self._clock = controller, calls, clock
        self._planner, self._aside = planner, aside
        self._places = Places()
        self._watched: _Watched | None = None
        self._last: Decision | None = None

    def state(self) -> controller_pb2.OnlineState | None:
        """For whoever watches; None where the plan does not ask for online planning."""
        watched = self._watched
        if watched is None or not watched.deployment.plan.online.enabled:
            return None
        recent = watched.window.recent(self._clock.now_s())
        decision = "; ".join(self._last.reasons) if self._last else "not looked yet"
        return controller_pb2.OnlineState(
            rate_per_s=recent.rate_per_s,
            mean_prompt_tokens=_mean(recent.num_prompt_tokens[recent.is_ok]),
            mean_output_tokens=_mean(recent.output_tokens),
            attainment=self._last.attainment if self._last else 0.0,
            num_requests=recent.num_requests,
            decision=decision,
        )

    async def run(self) -> None:
        """Look until cancelled."""
        never = asyncio.Event()
        while True:
            if (record := self._controller.record) is not None:
                await self._look(record)
            await wait_at_most(never, LOOK_S)

    async def replan(self, *, dry_run: bool) -> controller_pb2.ReplanReply:
        """Now, whatever has shifted. Raises NothingServed, or what the planner says."""
        record = self._controller.record
        if record is None or self._watched is None:
            raise NothingServed("nothing has been watched yet: try again in a few seconds")
        await self._ask_routers(self._watched.window)
        recent = self._watched.window.recent(self._clock.now_s())
        if not can_be_played(recent):
            raise NothingServed(
                f"{recent.num_answered} requests were answered in the last {recent.span_s:.0f} s, "
                "too few to plan from"
            )
        in_force = Sizes.of(record.in_force.plan)
        found = await self._aside(self._planner.replan, record.deployment, recent, in_force)
        plan = with_replicas(record.deployment.plan, sizes_by_role(found.after))
        if found.is_change and not dry_run:
            self._controller.resize(sizes_by_role(found.after), "asked to replan")
        return controller_pb2.ReplanReply(
            plan_toml=plan_text(plan) if found.is_change else "",
            reasons=found.reasons,
            applied=found.is_change and not dry_run,
        )

    async def _look(self, record: Record) -> None:
        watched = self._watched
        if watched is None or watched.deployment != record.deployment:
            watched = self._watched = await self._begin(record.deployment)
            self._last = None
        await self._ask_routers(watched.window)
        if watched.watch is None:
            return
        now_s, in_force = self._clock.now_s(), Sizes.of(record.in_force.plan)
        recent = watched.window.recent(now_s)
        decision = await self._aside(watched.watch.look, now_s, recent, in_force)
        if self._last is None or decision.stage is not self._last.stage:
            logger.info("online: %s", "; ".join(decision.reasons))
        self._last = decision
        # Somebody else may have put another plan while it was looked for.
        if decision.change is not None and self._controller.record is record:
            why = "; ".join(decision.reasons)
            self._controller.resize(sizes_by_role(decision.change), why)
        self._controller.roster.tell()

    async def _begin(self, deployment: Deployment) -> _Watched:
        online = deployment.plan.online
        window = Window(window_s=online.window_s, began_at_s=self._clock.now_s())
        watch = None
        if online.enabled:
            try:
                watch = await self._aside(self._planner.watch, deployment)
            except BatonError as error:
                # Serving goes on as planned; whoever looks is told.
                logger.warning("no online planning: %s", error)
                self._controller.roster.say("", f"no online planning: {error}")
        return _Watched(deployment, window, watch)

    async def _ask_routers(self, window: Window) -> None:
        routers = [m for m in self._controller.roster.members if m.is_router and m.serves]
        for router in routers:
            try:
                await self._ask(router, window)
            except BatonError as error:
                logger.info("%s does not tell what it served: %s", router.name, error)
        self._places.keep(frozenset(router.name for router in routers))

    async def _ask(self, router: Seen, window: Window) -> None:
        was = self._places.after(router.name)
        reply = await self._calls.workload(router.address, was)
        now_s = self._clock.now_s()
        place = Place(incarnation=reply.incarnation, next=reply.next, asked_at_s=now_s)
        before = self._places.heard(router.name, place)
        if before is None and was > 0:
            # Another process: its list began anew, and this answer began in the middle of it.
            reply = await self._calls.workload(router.address, 0)
            place = replace(place, next=reply.next)
            self._places.heard(router.name, place)
        window.add(
            [_ended(request, now_s) for request in reply.requests],
            num_missed=reply.num_missed if before else 0,
            since_s=before.asked_at_s if before else now_s,
            now_s=now_s,
        )


def sizes_by_role(sizes: Sizes) -> Mapping[Role, int]:
    """As a plan is changed by them."""
    return {role: sizes.of_role(role) for role in (Role.PREFILL, Role.DECODE, Role.MIXED)}


def _ended(request: cluster_pb2.EndedRequest, now_s: float) -> Ended:
    return Ended(
        now_s - request.arrived_ago_s,
        request.num_prompt_tokens,
        request.num_hit_tokens,
        request.num_output_tokens,
        request.ttft_s,
        request.tpot_s,
        request.status,
    )


def _mean(values: Ints) -> float:
    return float(values.mean()) if values.size else 0.0
