"""Calls to a Redis-compatible store: each bounded in time, its errors ours, none after `close`."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from registry.api import RegistryUnavailable

CALL_TIMEOUT_S = 2.0
"""Connect and one round trip, 1 s each: a store in the same building needs milliseconds."""


class StoreCalls:
    """One client, which it owns. `where` names the store in errors."""

    def __init__(self, client: Redis, where: str) -> None:
        self.client = client
        self.closed = asyncio.Event()
        self._where = where

    async def call(
        self, operation: Callable[[], object], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> object:
        """Await what `operation` begins. Raises RegistryUnavailable, caused by the client's."""
        self._check_open()
        num_cancels = _num_cancels()
        try:
            async with asyncio.timeout(timeout_s):
                # The client's own types allow for its synchronous twin.
                result = await cast("Awaitable[object]", operation())
        except (RedisError, OSError, TimeoutError) as error:
            # Cut: the text may come from the store.
            raise self.unavailable(f"{type(error).__name__}: {str(error)[:200]}") from error
        if _num_cancels() > num_cancels:
            # The client writes with asyncio.wait_for, which in Python 3.11 forgets a cancel that
            # comes together with its result: the loop above us would never end.
            raise asyncio.CancelledError
        if self.closed.is_set():
            # The client reconnects by itself, also a call that `close` found in flight.
            await self._disconnect()
        self._check_open()
        return result

    async def script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> object:
        """Run it in the store."""
        return await self.call(lambda: self.client.eval(script, len(keys), *keys, *args))

    async def texts(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> list[str]:
        """Run one whose reply is a list."""
        reply = await self.script(script, keys, args)
        if not isinstance(reply, list):
            raise self.unavailable("not a reply to our script")
        return [text_of(item) for item in reply]

    def unavailable(self, reason: str) -> RegistryUnavailable:
        """The one error for it."""
        return RegistryUnavailable(f"{self._where}: {reason}")

    async def close(self) -> None:
        """Drop all connections; idempotent."""
        self.closed.set()
        await self._disconnect()

    async def _disconnect(self) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self.client.aclose()
                await self.client.connection_pool.disconnect()

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise self.unavailable("this handle is closed")


def text_of(item: object) -> str:
    """What the store sent, as text; damage becomes characters that no record may hold."""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _num_cancels() -> int:
    """Cancels asked of the running task and not taken back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
