"""Tells health checks when a step does not return."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from core.clock import Clock

logger = logging.getLogger(__name__)

STEP_TIMEOUT_S = 20.0
"""Ten times the longest step seen: 256 prompt tokens of SmolLM2 took 0.9 s on one core, 2 s on a
busy one."""
LOOK_EVERY_S = 2.0


class Watchdog:
    """Health is NOT_SERVING while a step takes longer than `STEP_TIMEOUT_S`."""

    def __init__(
        self,
        running_since_s: Callable[[], float | None],
        report: Callable[[bool], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._running_since_s = running_since_s
        self._report = report
        self._clock = clock
        self._is_hanging = False

    async def run(self) -> None:
        """Look until cancelled; half a wake a second."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Report a change."""
        since_s = self._running_since_s()
        hangs = since_s is not None and self._clock.now_s() - since_s > STEP_TIMEOUT_S
        if hangs != self._is_hanging:
            self._is_hanging = hangs
            logger.error("step %s", "does not return" if hangs else "returned after all")
            await self._report(not hangs)
