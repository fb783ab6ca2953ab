"""One instance: its step loop, its books, and how it leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from core.waiting import wait_at_most
from worker_host.books import Books
from worker_host.door import Door

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.05
"""While draining: streams between instances end without the step loop's doing."""

Report = Callable[[bool], Awaitable[None]]


class WorkerHost:
    """Drains once, on request or at the process's stop; what is left then is broken off."""

    def __init__(
        self,
        books: Books,
        door: Door,
        *,
        work: asyncio.Event,
        stop: asyncio.Event,
        report: Report,
        say_goodbye: Callable[[], None],
    ) -> None:
        """`work` wakes the step loop, `stop` ends the process, `report` tells health checks,
        `say_goodbye` ends streams that would never end by themselves.
        """
        self.books = books
        self._door = door
        self._work = work
        self._stop = stop
        self._report = report
        self._say_goodbye = say_goodbye
        self._turned = asyncio.Event()
        self._drain_asked = asyncio.Event()
        self._drain_timeout_s = 0.0

    @property
    def is_draining(self) -> bool:
        """It takes no new work any more."""
        return self._door.is_draining

    def turned(self) -> None:
        """The step loop has looked for work: something may have ended."""
        self._turned.set()

    def ask_drain(self, timeout_s: float) -> None:
        """Refuse new work from now on; stop when the old has ended, or after `timeout_s`."""
        self._close_door()
        self._drain_timeout_s = timeout_s
        self._drain_asked.set()

    async def run(self) -> None:
        """Wait for a Drain call, then drain and stop the process."""
        await self._drain_asked.wait()
        await self._report(False)
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self.drain()
        except TimeoutError:
            logger.warning("drain broken off after %s s", self._drain_timeout_s)
        self._stop.set()
        # The loops of a process end together.
        await asyncio.Event().wait()

    async def drain(self) -> None:
        """Refuse new work and return when the old has ended. The caller bounds it."""
        self._close_door()
        try:
            await self.until_idle()
        finally:
            self._say_goodbye()

    async def until_idle(self) -> None:
        """Return when nothing is under way. The caller bounds it."""
        while not self.books.is_idle:
            self._turned.clear()
            await wait_at_most(self._turned, LOOK_AGAIN_S)

    async def report_health(self, is_well: bool) -> None:
        """Tell health checks; who drains stays NOT_SERVING."""
        await self._report(is_well and not self.is_draining)

    def _close_door(self) -> None:
        if not self.is_draining:
            logger.info("draining")
        self._door.is_draining = True
        # Its next turn tells the routers.
        self._work.set()
