"""Waiting for an event, but not for ever."""

import asyncio


async def wait_at_most(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether `event` was set before `timeout_s` seconds had passed; None waits without end."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False
