"""How late the router's event loop is: what every request that is under way waits for."""

import asyncio
from collections.abc import Callable

from core.clock import Clock

SAMPLE_EVERY_S = 0.1
"""Under a millisecond of a core per second; whatever stands still for longer is seen."""


async def watch_loop_lag(clock: Clock, observe: Callable[[float], None]) -> None:
    """Tell, until cancelled, by how many seconds each wake-up was late."""
    while True:
        due_at_s = clock.now_s() + SAMPLE_EVERY_S
        await asyncio.sleep(SAMPLE_EVERY_S)
        observe(max(0.0, clock.now_s() - due_at_s))
