"""A store as one watch sees it: polled, and subscribed to so as to be nudged in between."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from registry.api import RegistryUnavailable
from registry.store_calls import CALL_TIMEOUT_S, StoreCalls
from registry.view import Snapshot

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

MAX_NUDGES_AT_ONCE = 1000
"""Taken together before one reading; the rest cause another."""


class RedisSource:
    """Implements watching.Source. `read` gives the snapshots, `channel` the nudges."""

    def __init__(
        self,
        calls: StoreCalls,
        read: Callable[[], Awaitable[Snapshot]],
        *,
        channel: str,
        reread_s: float,
    ) -> None:
        self._calls = calls
        self._read = read
        self._channel = channel
        self._reread_s = reread_s
        self._listener: PubSub | None = None

    async def snapshot(self) -> Snapshot:
        """One reading of the store."""
        return await self._read()

    async def changed(self) -> None:
        """Return after a nudge, or when it is time to read again."""
        try:
            if self._listener is None:
                listener = self._calls.client.pubsub(ignore_subscribe_messages=True)
                self._listener = listener
                # Returns at once, to read again: a change before the subscription was not heard.
                await self._calls.call(lambda: listener.subscribe(self._channel))
            else:
                await self._nudged(self._listener)
        except RegistryUnavailable:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await listener.aclose()  # type: ignore[no-untyped-call]

    async def _nudged(self, listener: "PubSub") -> None:
        timeout_s = self._reread_s
        for _ in range(MAX_NUDGES_AT_ONCE):
            message = await self._calls.call(
                partial(listener.get_message, timeout=timeout_s),
                timeout_s=timeout_s + CALL_TIMEOUT_S,
            )
            if message is None:
                return
            timeout_s = 0.0
