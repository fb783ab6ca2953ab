"""Who is served now, who waits, who is refused: tenants get equal shares of a bounded line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from core.clock import Clock
from core.errors import DeadlinePassed, Draining, Saturated
from policy.admission import line_wait_s, retry_after_s
from policy.correction import Mean
from policy.fairness import Claim, ServedTokens
from router.line import Line, Waiter


class Room(Protocol):
    """What the instances can still take."""

    def has_room(self) -> bool:
        """Whether one more answer can be written without delaying the others too much."""
        ...

    def taken(self) -> None:
        """One more is."""
        ...


class Admission:
    """Counts requests, not choices."""

    def __init__(
        self, *, max_running: int, max_queued: int, ageing_s: float, clock: Clock, room: Room
    ) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._clock = clock
        self._served = ServedTokens()
        self._line = Line(max_queued=max_queued, ageing_s=ageing_s, served=self._served)
        self._room = room
        self._num_running = 0
        self._held_s = Mean()
        self._is_draining = False
        self.idle = asyncio.Event()
        """Nobody runs and nobody waits."""
        self.idle.set()

    def use_limits(self, *, max_running: int, max_queued: int) -> None:
        """From now on; nobody who is in is sent away."""
        self._max_running, self._max_queued = max_running, max_queued
        self._line.max_queued = max_queued
        self._hand_out()

    @property
    def num_running(self) -> int:
        """Admitted and not ended."""
        return self._num_running

    @property
    def num_queued(self) -> int:
        """Waiting for admission."""
        return len(self._line)

    @property
    def is_draining(self) -> bool:
        """New requests are refused."""
        return self._is_draining

    def drain(self) -> None:
        """Refuse everybody from now on; who waits is still served."""
        self._is_draining = True

    def check(self, tenant: str) -> None:
        """Raise Draining or Saturated when `admit` would: before any work is done."""
        if self._is_draining:
            raise Draining("this router drains and takes no new requests")
        if not self._has_place() and not self._line.has_room(tenant):
            raise self._saturated()

    def charge(self, tenant: str, cost: float) -> None:
        """One of its running requests was served so much more."""
        self._served.charge(tenant, cost)

    @property
    def line_wait_s(self) -> float:
        """That somebody who comes now would wait for a place, as far as can be told."""
        if self._has_place() and not self._line:
            return 0.0
        return line_wait_s(len(self._line) + 1, self._num_running, self._held_s.value)

    @asynccontextmanager
    async def admit(
        self, timeout_s: float, claim: Claim, *, cost: float = 0.0, patience_s: float | None = None
    ) -> AsyncIterator[None]:
        """A place, held while the body runs; the tenant pays `cost` when it gets it.

        Raises Draining, DeadlinePassed when none comes free in time, or Saturated: at once, when
        somebody whose tenant waits for less comes while the line is full, or after `patience_s`.
        """
        self.check(claim.tenant)
        self.idle.clear()
        self._served.join(claim.tenant)
        try:
            await self._take_place(timeout_s, claim, cost, patience_s)
            began_at_s = self._clock.now_s()
            try:
                yield
            finally:
                self._held_s = self._held_s.after(self._clock.now_s() - began_at_s)
                self._give_place()
        finally:
            self._served.leave(claim.tenant)
            if not self._num_running and not self._line:
                self.idle.set()

    async def _take_place(
        self, timeout_s: float, claim: Claim, cost: float, patience_s: float | None
    ) -> None:
        # Room may have come since somebody last left.
        self._hand_out()
        if self._has_place() and not self._line:
            self._take(claim, cost)
            return
        waiter = Waiter(claim, cost, asyncio.get_running_loop().create_future())
        displaced = self._line.add(waiter)
        if displaced is not None and not displaced.verdict.done():
            displaced.verdict.set_result(self._saturated())
        is_patient = patience_s is None or patience_s >= timeout_s
        limit_s = timeout_s if is_patient or patience_s is None else patience_s
        try:
            async with asyncio.timeout(limit_s):
                refusal = await waiter.verdict
        except TimeoutError:
            self._leave(waiter)
            if not is_patient:
                raise self._saturated() from None
            raise DeadlinePassed(f"not admitted in {timeout_s:.3g} s") from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        if refusal is not None:
            raise refusal

    def _leave(self, waiter: Waiter) -> None:
        if self._line.remove(waiter):
            return
        verdict = waiter.verdict
        if verdict.done() and not verdict.cancelled() and verdict.result() is None:
            # It was given a place in the very moment it gave up.
            self._give_place()

    def _give_place(self) -> None:
        """Hand the place to whose turn it is, or free it."""
        self._num_running -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._has_place() and (waiter := self._line.pop(self._clock.now_s())) is not None:
            if not waiter.verdict.done():
                # Now, not when it wakes up: the next turn may be decided before that.
                self._take(waiter.claim, waiter.cost)
                waiter.verdict.set_result(None)

    def _has_place(self) -> bool:
        """One may always run: else nobody's end would ever let the next one in."""
        if self._num_running >= self._max_running:
            return False
        return not self._num_running or self._room.has_room()

    def _take(self, claim: Claim, cost: float) -> None:
        self._num_running += 1
        self._room.taken()
        self._served.charge(claim.tenant, cost)

    def _saturated(self) -> Saturated:
        num_queued = len(self._line)
        return Saturated(
            f"{self._num_running} requests run and {num_queued} wait, limits"
            f" {self._max_running} and {self._max_queued}",
            retry_after_s=retry_after_s(self.line_wait_s),
        )
