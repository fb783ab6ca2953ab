"""A cancel is never lost, whatever the store's client does with it."""

import asyncio

import pytest
from redis.asyncio import Redis

from registry.store_calls import StoreCalls


async def test_a_cancel_that_comes_with_the_result_is_kept() -> None:
    """As Python 3.11's asyncio.wait_for does it: swallow the cancel, return the result."""
    calls = StoreCalls(Redis(host="127.0.0.1", port=1), "test")
    waiting = asyncio.Event()

    async def swallows() -> str:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "result"
        return "never"

    task = asyncio.ensure_future(calls.call(swallows))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await calls.close()
