"""Who is served now, who waits, who is refused: a bounded queue in order of arrival."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.errors import DeadlinePassed, Draining, Saturated

RETRY_PER_QUEUED_S = 0.01
"""Retry hint per waiting request: a guess of the time one takes, over all that run at once."""
MIN_RETRY_S = 0.5
MAX_RETRY_S = 30.0


class Admission:
    """Counts requests, not choices."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._queue: deque[asyncio.Future[None]] = deque()
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
        return len(self._queue)

    def drain(self) -> None:
        """Refuse everybody from now on; who waits is still served."""
        self._is_draining = True

    def check(self) -> None:
        """Raise Draining or Saturated when `admit` would: before any work is done."""
        if self._is_draining:
            raise Draining("this router drains and takes no new requests")
        if self._num_running >= self._max_running and len(self._queue) >= self._max_queued:
            raise Saturated(
                f"{self._num_running} requests run and {len(self._queue)} wait, limits"
                f" {self._max_running} and {self._max_queued}",
                retry_after_s=self._retry_after_s(),
            )

    @asynccontextmanager
    async def admit(self, timeout_s: float) -> AsyncIterator[None]:
        """A place, held while the body runs.

        Raises Draining, Saturated, or DeadlinePassed when none comes free in time.
        """
        self.check()
        self.idle.clear()
        try:
            await self._take_place(timeout_s)
            try:
                yield
            finally:
                self._give_place()
        finally:
            if not self._num_running and not self._queue:
                self.idle.set()

    async def _take_place(self, timeout_s: float) -> None:
        if self._num_running < self._max_running and not self._queue:
            self._num_running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(timeout_s):
                await place
        except TimeoutError:
            self._leave(place)
            raise DeadlinePassed(f"not admitted in {timeout_s:.3g} s") from None
        except asyncio.CancelledError:
            self._leave(place)
            raise

    def _leave(self, place: "asyncio.Future[None]") -> None:
        if place in self._queue:
            self._queue.remove(place)
        elif place.done() and not place.cancelled():
            # It was given a place in the very moment it gave up.
            self._give_place()

    def _give_place(self) -> None:
        """Hand the place to who waits longest, or free it."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._num_running -= 1

    def _retry_after_s(self) -> float:
        return min(MAX_RETRY_S, max(MIN_RETRY_S, RETRY_PER_QUEUED_S * len(self._queue)))
