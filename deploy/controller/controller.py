"""Keeps a cluster equal to its plan: one loop that looks, decides and acts."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from core.errors import BatonError, WrongState
from core.member import Role
from core.waiting import wait_at_most
from deploy.controller.backoff import Backoff
from deploy.controller.decide import (
    POOLS,
    Action,
    ChangeRole,
    Drain,
    Start,
    Wanted,
    WantedPool,
    decide,
    lacks,
)
from deploy.controller.deployment import Deployment
from deploy.controller.fit import Host, Want, check_fits, choose_host, with_back
from deploy.controller.hands import Order, Unfinished
from deploy.controller.lives import RETRY_S, Lives, Reach
from deploy.controller.orders import (
    Cluster,
    instance_order,
    new_name,
    nothing_wanted,
    router_order,
    wanted_of,
)
from deploy.controller.record import Doors, Record
from deploy.controller.roster import Roster
from deploy.controller.seen import MemberEvent, MemberState, Seen

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 5.0
"""Whatever is not heard of, a host that joined for one, is seen then."""


NOTHING = Wanted(
    pools={role: WantedPool(num=0, make="") for role in POOLS},
    routers=WantedPool(num=0, make=""),
    max_surge=1,
)
"""Of a cluster that is ending and whose plan is lost."""


class Controller:
    """Owns the record of what the cluster is to be; the roster has what it is."""

    def __init__(
        self,
        cluster: Cluster,
        reach: Reach,
        *,
        keep: Callable[[Record], None],
        record: Record | None = None,
    ) -> None:
        """`keep` is told every new record, to put it where the next controller finds it."""
        self.term = 0
        """Of this controller; set by whoever keeps it the leader."""
        self.record = record
        self.roster = Roster(cluster.name, reach.clock)
        self._cluster, self._keep = cluster, keep
        self._hands, self._calls, self._clock = reach.hands, reach.calls, reach.clock
        self._lives = Lives(
            self.roster,
            reach,
            term=lambda: self.term,
            on_lost=self._on_lost,
            on_doors=self._on_doors,
        )
        self._wake = asyncio.Event()
        self._backoff = Backoff()
        self._is_ending = False
        self._drain_s = 0.0
        self._pause_s = LOOK_AGAIN_S
        self._hosts: Sequence[Host] = ()
        self._lacks_room = False
        """The last instance to start found no host."""

    # --- what others ask ----------------------------------------------------------------------

    @property
    def wanted(self) -> Wanted | None:
        """What is to be; None before anybody said."""
        if self.record is None:
            return NOTHING if self._is_ending else None
        wanted = wanted_of(self.record.in_force)
        if self._lacks_room:
            # Then the old one leaves first.
            wanted = replace(wanted, max_surge=0)
        if not self._is_ending:
            return wanted
        return nothing_wanted(wanted, routers_left=any(m.is_router for m in self.roster.members))

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What is still to come; empty: all is as planned."""
        if (wanted := self.wanted) is None:
            return ("a plan",)
        now_s = self._clock.now_s()
        held = [
            f"next attempt in {wait_s:.0f} s after: {self._backoff.reasons[make]}"
            for make in self._backoff.not_before_s
            if (wait_s := self._backoff.wait_s(make, now_s)) > 0
        ]
        return (*lacks(wanted, self.roster.members), *held)

    async def check(self, deployment: Deployment) -> None:
        """Raise DoesNotFit when the hosts have no room for it, even without what is there now."""
        hosts = await self._hands.hosts()
        bundles: dict[str, list[Mapping[str, float]]] = {host.address: [] for host in hosts}
        for member in self.roster.members:
            bundles.setdefault(member.host, []).append(member.bundle)
        check_fits(deployment.plan, [with_back(host, bundles[host.address]) for host in hosts])

    def first_actions(self, deployment: Deployment) -> tuple[Action, ...]:
        """What would be done at once."""
        record = self.record
        is_known = record is not None and record.deployment == deployment
        wanted = record.in_force if record is not None and is_known else deployment
        return decide(wanted_of(wanted), self.roster.members)

    def put(self, deployment: Deployment) -> int:
        """From now on the cluster is to be this; its edition, which is a new one if this differs.

        Raises WrongState when the cluster is ending.
        """
        if self._is_ending:
            raise WrongState("the cluster is ending")
        # Whoever asks, asks for it now.
        self._backoff, self._lacks_room = Backoff(), False
        self._wake.set()
        last = self.record
        if last is not None and last.deployment == deployment:
            return last.edition
        edition = 1 + (last.edition if last else 0)
        doors = last.doors if last else {}
        self._put_record(Record(edition=edition, deployment=deployment, doors=doors))
        self.roster.say("", f"plan {edition} is in force")
        return edition

    def resize(self, sizes: Mapping[Role, int], why: str) -> int:
        """Pools are to have these sizes from now on; the edition. Raises WrongState."""
        if self._is_ending or self.record is None:
            raise WrongState(
                "there is no plan to change" if not self._is_ending else "it is ending"
            )
        record = replace(self.record, edition=self.record.edition + 1, sizes=dict(sizes))
        self._lacks_room = False
        self._put_record(record)
        told = ", ".join(f"{num} {role}" for role, num in sizes.items() if num)
        self.roster.say("", f"plan {record.edition} is in force: {told}; {why}")
        self._wake.set()
        return record.edition

    def drain(self, name: str, timeout_s: float) -> None:
        """Take one member out; the loop puts another in its place. Raises UnknownMember."""
        self._leave(self.roster.get(name), timeout_s, "asked to")

    def end(self, drain_s: float) -> None:
        """Drain and end everything; `run` returns then."""
        self._is_ending, self._drain_s = True, drain_s
        self.roster.say("", "ending")
        self._wake.set()

    async def read_log(self, name: str, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """See Hands."""
        return await self._hands.read_log(name, offset, max_bytes)

    # --- the loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Take over what is there; then look, decide and act, until cancelled or the cluster has
        been ended."""
        async with asyncio.TaskGroup() as self._group:
            await self._take_over()
            watch = self._group.create_task(self._watch())
            while not (self._is_ending and not self.roster.members):
                self._wake.clear()
                self._pause_s = LOOK_AGAIN_S
                await self._step()
                await wait_at_most(self._wake, self._pause_s)
            watch.cancel()

    async def _watch(self) -> None:
        """Every change of a member is a reason to look again."""
        async for _ in self.roster.changes():
            self._wake.set()

    async def _take_over(self) -> None:
        """Who is there already stays there: a controller that starts again disturbs nobody."""
        while True:
            try:
                found = await self._hands.found()
                break
            except Unfinished as error:
                logger.warning("%s", error)
                await asyncio.sleep(RETRY_S)
        async with asyncio.TaskGroup() as group:
            for one in found:
                group.create_task(self._lives.adopt(one))
        for one in found:
            self._group.create_task(self._lives.follow(one.name))
        self.roster.say("", f"controller of term {self.term}; found {len(found)} members")

    async def _step(self) -> None:
        if (wanted := self.wanted) is None:
            return
        actions = decide(wanted, self.roster.members)
        if any(isinstance(action, Start) for action in actions):
            try:
                self._hosts = [self._without_promised(h) for h in await self._hands.hosts()]
            except Unfinished as error:
                self._retry_soon(f"cannot see the hosts: {error}")
                return
        for action in actions:
            # Whoever has gone while others were asked is looked at with the next step.
            if isinstance(action, Start) or action.name in self.roster:
                await self._do(action)

    async def _do(self, action: Action) -> None:
        match action:
            case Start():
                self._start(action)
            case Drain():
                plan_s = self.record.in_force.plan.drain_s if self.record else 0.0
                timeout_s = self._drain_s if self._is_ending else plan_s
                self._leave(self.roster.get(action.name), timeout_s, action.reason)
            case ChangeRole():
                await self._change_role(action)

    def _retry_soon(self, text: str) -> None:
        logger.warning("%s", text)
        self._pause_s = min(self._pause_s, RETRY_S)

    # --- acting -------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        now_s = self._clock.now_s()
        if (wait_s := self._backoff.wait_s(start.make, now_s)) > 0:
            self._pause_s = min(self._pause_s, wait_s)
            return
        if (order := self._order(start)) is None:
            return
        self.roster.put(
            Seen(
                name=order.name,
                role=order.role,
                make=order.make,
                state=MemberState.STARTING,
                since_s=now_s,
                host=order.host,
                bundle=order.bundle,
                has_place=False,
            )
        )
        where = f" on {order.host}" if order.host else ""
        self.roster.say(order.name, f"starting as {order.role}{where}")
        self._group.create_task(self._lives.live(order))

    def _order(self, start: Start) -> Order | None:
        """None: nothing has room for it now."""
        assert self.record is not None, "nothing is started before there is a plan"
        deployment = self.record.in_force
        if start.role is Role.ROUTER:
            return self._router_order(start, deployment)
        order = instance_order(self._cluster, deployment, start, new_name(self.roster), "")
        want = Want(role=start.role, bundle=order.bundle)
        host = choose_host(deployment.plan, want, self._hosts_now())
        self._lacks_room = host is None
        if host is None:
            self._retry_soon(f"no host has room for a {start.role} instance: {dict(order.bundle)}")
            return None
        # Taken at once: Ray tells of it only later.
        taken = host.with_member(start.role, order.bundle)
        self._hosts = [taken if h.address == host.address else h for h in self._hosts]
        return replace(order, host=host.address)

    def _router_order(self, start: Start, deployment: Deployment) -> Order:
        """Where the last one of its name was; else where the fewest are."""
        alive = {host.address for host in self._hosts}
        doors = {n: door for n, door in self._doors.items() if door.host in alive}
        order = router_order(self._cluster, deployment, start, doors)
        if not order.host:
            want = Want(role=Role.ROUTER, bundle={})
            host = choose_host(deployment.plan, want, self._hosts_now())
            order = replace(order, host=host.address if host else "")
        return order

    @property
    def _doors(self) -> Mapping[str, Doors]:
        return self.record.doors if self.record else {}

    def _without_promised(self, host: Host) -> Host:
        """Ray tells of a place that was taken only after a while."""
        for member in self.roster.members:
            if member.host == host.address and not member.has_place:
                host = host.with_member(member.role, member.bundle)
        return host

    def _hosts_now(self) -> list[Host]:
        """With our members, by role, as they are now."""
        counted = []
        for host in self._hosts:
            here = [m.role for m in self.roster.members if m.host == host.address]
            counted.append(replace(host, roles={role: here.count(role) for role in set(here)}))
        return counted

    def _leave(self, member: Seen, timeout_s: float, reason: str) -> None:
        if member.is_live:
            self.roster.advance(member.name, MemberEvent.DRAIN)
            self.roster.say(member.name, f"draining, at most {timeout_s:g} s: {reason}")
            self._group.create_task(self._lives.see_off(member, timeout_s))

    async def _change_role(self, change: ChangeRole) -> None:
        member = self.roster.get(change.name)
        try:
            await self._calls.change_role(member.address, change.role, self.term)
        except BatonError as error:
            self._retry_soon(f"{change.name} does not become {change.role}: {error}")
            return
        self.roster.change_role(change.name, change.role)
        self.roster.say(change.name, f"was {member.role}, is {change.role}")

    def _on_lost(self, member: Seen, reason: str, served_s: float) -> None:
        self._backoff = self._backoff.failed(
            member.make,
            f"{member.name}: {reason}",
            served_s=served_s,
            now_s=self._clock.now_s(),
        )

    def _on_doors(self, name: str, doors: Doors) -> None:
        if self.record is not None and self.record.doors.get(name) != doors:
            self._put_record(replace(self.record, doors={**self.record.doors, name: doors}))

    def _put_record(self, record: Record) -> None:
        self.record = record
        self._keep(record)
        self.roster.tell()
