"""A cancel is never lost, whatever the store's client does with it."""

import asyncio

import pytest

from registry.connect import connect
from registry.redis_registry import RedisRegistry


async def test_a_cancel_that_comes_with_the_result_is_kept() -> None:
    """As Python 3.11's asyncio.wait_for does it: swallow the cancel, return the result."""
    registry = connect("redis://127.0.0.1:1", "test")
    assert isinstance(registry, RedisRegistry)
    waiting = asyncio.Event()

    async def swallows() -> str:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "result"
        return "never"

    task = asyncio.ensure_future(registry.call(swallows))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await registry.close()
