"""One member's life, from its order to the moment when nothing of it is left."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from core.clock import Clock
from core.errors import BatonError
from core.waiting import wait_at_most
from deploy.actors import READY_TIMEOUT_S
from deploy.controller.calls import Calls
from deploy.controller.hands import Born, Found, Hands, Order, Unfinished
from deploy.controller.record import Doors
from deploy.controller.roster import Roster
from deploy.controller.seen import MemberEvent, MemberState, Seen

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""After Ray or a member did not answer."""
ADOPT_TIMEOUT_S = 3.0
"""A member that serves says so at once; one that does not is still starting."""
FORCE_EXTRA_S = 15.0
"""Past a drain: then whoever has not ended is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a controller gets at the world."""

    hands: Hands
    calls: Calls
    clock: Clock


class Lives:
    """Begins, follows and ends members; the roster is told all of it."""

    def __init__(
        self,
        roster: Roster,
        reach: Reach,
        *,
        term: Callable[[], int],
        on_lost: Callable[[Seen, str, float], None],
        on_doors: Callable[[str, Doors], None],
    ) -> None:
        """`on_lost`: it ended without being asked to, why, and after serving for so many seconds;
        `on_doors`: a router serves there."""
        self._roster = roster
        self._hands, self._calls, self._clock = reach.hands, reach.calls, reach.clock
        self._term, self._on_lost, self._on_doors = term, on_lost, on_doors

    async def live(self, order: Order) -> None:
        """From the order on."""
        try:
            await self._hands.start(order)
        except BatonError as error:
            self._lost(order.name, str(error))
            await self._clear(order.name)
            return
        self._roster.put(replace(self._roster.get(order.name), has_place=True))
        await self._grow(order.name)

    async def adopt(self, found: Found) -> None:
        """Learn of one that was there before this controller; return soon, whatever it does."""
        member = Seen(
            name=found.name,
            role=found.role,
            make=found.make,
            state=MemberState.STARTING,
            since_s=self._clock.now_s(),
            host=found.host,
            bundle=found.bundle,
        )
        self._roster.put(member)
        try:
            async with asyncio.timeout(ADOPT_TIMEOUT_S):
                born = await self._hands.born(found.name)
                if not member.is_router:
                    self._roster.change_role(found.name, await self._calls.role(born.address))
                await self._serve(found.name, born)
                self._roster.say(found.name, f"was there, {self._roster.get(found.name).role}")
        except (TimeoutError, BatonError) as error:
            logger.warning("%s does not answer yet: %s", found.name, error)

    async def follow(self, name: str) -> None:
        """An adopted one, to its end."""
        if self._roster.get(name).serves:
            await self._end(name)
        else:
            await self._grow(name)

    async def see_off(self, was: Seen, timeout_s: float) -> None:
        """Ask one that is draining by now to do so, and end it when that takes too long.

        `live` hears of its end.
        """
        name = was.name
        limit_s = await self._ask_drain(was, timeout_s) if was.serves else 0.0
        deadline_s = self._clock.now_s() + limit_s
        while self._is_leaving(name) and (left_s := deadline_s - self._clock.now_s()) > 0:
            await wait_at_most(self._roster.changed, left_s)
        while self._is_leaving(name) and not await self._force(name):  # noqa: ASYNC110
            await asyncio.sleep(RETRY_S)

    def _is_leaving(self, name: str) -> bool:
        """Still the one that was told to: a router's successor has its name."""
        return name in self._roster and self._roster.get(name).state is MemberState.DRAINING

    async def _ask_drain(self, member: Seen, timeout_s: float) -> float:
        """How long to wait for its end."""
        try:
            await self._calls.drain(member.address, timeout_s, self._term())
        except BatonError as error:
            self._roster.say(member.name, f"does not drain: {error}")
            return 0.0
        return timeout_s + FORCE_EXTRA_S

    async def _grow(self, name: str) -> None:
        """Until it serves, then to its end."""
        deadline_s = self._clock.now_s() + READY_TIMEOUT_S
        while True:
            try:
                born = await self._hands.born(name)
                ordered_at_s = self._roster.get(name).since_s
                await self._serve(name, born)
                self._say_served(name, born, self._clock.now_s() - ordered_at_s)
                break
            except Unfinished as error:
                # Ray may be away for a while: no reason to end who may be well.
                if self._clock.now_s() > deadline_s:
                    self._lost(name, str(error))
                    await self._clear(name)
                    return
                await asyncio.sleep(RETRY_S)
            except BatonError as error:
                self._lost(name, str(error))
                await self._clear(name)
                return
        await self._end(name)

    async def _end(self, name: str) -> None:
        if self._roster.get(name).state is MemberState.DRAINING:
            # It was asked to leave before there was anything to ask.
            await self._force(name)
        self._lost(name, await self._hands.ended(name))
        await self._clear(name)

    async def _serve(self, name: str, born: Born) -> None:
        member = self._roster.get(name)
        http_address = ""
        if member.is_router:
            http_address = await self._calls.http_address(born.address)
            port, http_port = (int(a.rpartition(":")[2]) for a in (born.address, http_address))
            self._on_doors(name, Doors(host=born.host, port=port, http_port=http_port))
        now = self._roster.advance(name, MemberEvent.READY)
        self._roster.put(
            replace(
                now,
                address=born.address,
                host=born.host,
                http_address=http_address,
                actor_id=born.actor_id,
            )
        )

    def _say_served(self, name: str, born: Born, took_s: float) -> None:
        parts = f"process {max(0.0, took_s - born.load_s):.1f} s, load {born.load_s:.1f} s"
        self._roster.say(name, f"serves on {born.address} after {took_s:.1f} s: {parts}")

    def _lost(self, name: str, reason: str) -> None:
        """It has ended; whoever was not asked to is missed."""
        member = self._roster.get(name)
        self._roster.advance(name, MemberEvent.ENDED)
        if member.is_live:
            served_s = self._clock.now_s() - member.since_s if member.serves else 0.0
            self._roster.say(name, f"lost while {member.state}: {reason}")
            self._on_lost(member, reason, served_s)

    async def _clear(self, name: str) -> None:
        """Give back its process and its place, however often Ray has to be asked."""
        while not await self._force(name):  # noqa: ASYNC110 - Ray tells nobody when it is back
            await asyncio.sleep(RETRY_S)
        if self._roster.get(name).state is MemberState.DRAINING:
            self._roster.say(name, "has left")
        self._roster.remove(name)

    async def _force(self, name: str) -> bool:
        """Whether Ray did it."""
        try:
            await self._hands.end(name, 0.0)
        except Unfinished as error:
            logger.warning("%s", error)
            return False
        return True
