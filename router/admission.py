"""Who is served now, who waits, who is refused: tenants get equal shares of a bounded line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.clock import Clock
from core.errors import DeadlinePassed, Draining, Saturated
from policy.fairness import Claim, ServedTokens
from router.line import Line, Waiter

RETRY_PER_QUEUED_S = 0.01
"""Retry hint per waiting request: a guess of the time one takes, over all that run at once."""
MIN_RETRY_S = 0.5
MAX_RETRY_S = 30.0


class Admission:
    """Counts requests, not choices."""

    def __init__(self, *, max_running: int, max_queued: int, ageing_s: float, clock: Clock) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._clock = clock
        self._served = ServedTokens()
        self._line = Line(max_queued=max_queued, ageing_s=ageing_s, served=self._served)
        self._num_running = 0
        self._is_draining = False
        self.idle = asyncio.Event()
        """Nobody runs and nobody waits."""
        self.idle.set()

    @property
    def num_running(self) -> int:
        """Admitted and not ended."""
        return self._num_running

    @property
    def num_queued(self) -> int:
        """Waiting for admission."""
        return len(self._line)

    def drain(self) -> None:
        """Refuse everybody from now on; who waits is still served."""
        self._is_draining = True

    def check(self, tenant: str) -> None:
        """Raise Draining or Saturated when `admit` would: before any work is done."""
        if self._is_draining:
            raise Draining("this router drains and takes no new requests")
        if self._num_running >= self._max_running and not self._line.has_room(tenant):
            raise self._saturated()

    def charge(self, tenant: str, cost: float) -> None:
        """One of its running requests was served so much more."""
        self._served.charge(tenant, cost)

    @asynccontextmanager
    async def admit(
        self, timeout_s: float, claim: Claim, *, cost: float = 0.0
    ) -> AsyncIterator[None]:
        """A place, held while the body runs; the tenant pays `cost` when it gets it.

        Raises Draining, DeadlinePassed when none comes free in time, or Saturated: at once, or
        when somebody whose tenant waits for less comes while the line is full.
        """
        self.check(claim.tenant)
        self.idle.clear()
        self._served.join(claim.tenant)
        try:
            await self._take_place(timeout_s, claim, cost)
            try:
                yield
            finally:
                self._give_place()
        finally:
            self._served.leave(claim.tenant)
            if not self._num_running and not self._line:
                self.idle.set()

    async def _take_place(self, timeout_s: float, claim: Claim, cost: float) -> None:
        if self._num_running < self._max_running:
            # Then nobody waits: a place that comes free is handed on.
            self._num_running += 1
            self._served.charge(claim.tenant, cost)
            return
        waiter = Waiter(claim, cost, asyncio.get_running_loop().create_future())
        displaced = self._line.add(waiter)
        if displaced is not None and not displaced.verdict.done():
            displaced.verdict.set_result(self._saturated())
        try:
            async with asyncio.timeout(timeout_s):
                refusal = await waiter.verdict
        except TimeoutError:
            self._leave(waiter)
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
        while (waiter := self._line.pop(self._clock.now_s())) is not None:
            if not waiter.verdict.done():
                # Now, not when it wakes up: the next turn may be decided before that.
                self._served.charge(waiter.claim.tenant, waiter.cost)
                waiter.verdict.set_result(None)
                return
        self._num_running -= 1

    def _saturated(self) -> Saturated:
        num_queued = len(self._line)
        return Saturated(
            f"{self._num_running} requests run and {num_queued} wait, limits"
            f" {self._max_running} and {self._max_queued}",
            retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, RETRY_PER_QUEUED_S * num_queued)),
        )
