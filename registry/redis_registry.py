"""The registry in a Redis-compatible store; the only module that speaks to one."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.clock import Clock, MonotonicClock
from core.member import MAX_MEMBER_JSON_BYTES, Member
from core.prefix import KEY_BYTES
from registry import scripts
from registry.api import (
    MAX_PLAN_BYTES,
    QuotaAsk,
    QuotaGrant,
    RegistryUnavailable,
    check_plan,
    check_ttl,
    key_from_text,
    key_to_text,
)
from registry.editions import MAX_EDITIONS, MAX_ENTRY_BYTES, Draft, Edition, conflict, edition_of
from registry.keys import Keys
from registry.view import Snapshot, read_records
from registry.watching import DEFAULT_PACE, WatchPace, watch

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 2.0
"""Connect and one round trip, 1 s each: a store in the same building needs milliseconds."""
MAX_MEMBERS = 1024
"""Read at most; 64 MiB at the very worst, 0.5 MiB in earnest."""
MAX_NUDGES_AT_ONCE = 1000
"""Taken together before one reading; the rest cause another."""


class RedisRegistry:
    """Implements Registry over one client, which it owns. `where` names the store in errors."""

    def __init__(
        self,
        client: Redis,
        keys: Keys,
        *,
        where: str,
        clock: Clock | None = None,
        pace: WatchPace = DEFAULT_PACE,
    ) -> None:
        self._client = client
        self._keys = keys
        self._where = where
        self._clock = clock or MonotonicClock()
        self._pace = pace
        self._closed = asyncio.Event()
        self._unreadable: dict[str, str] = {}

    async def announce(self, member: Member, *, ttl_s: float) -> None:
        """Publish `member` for `ttl_s` seconds of the store's clock."""
        check_ttl(ttl_s)
        keys = (self._keys.member(member.instance_id), self._keys.members, self._keys.memory)
        args = (
            member.instance_id,
            member.to_json(),
            round(ttl_s * 1000),
            secrets.token_hex(8),
            self._keys.changes_channel,
        )
        await self._script(scripts.ANNOUNCE, keys, args)

    async def withdraw(self, member: Member) -> None:
        """Remove this incarnation."""
        keys = (self._keys.member(member.instance_id), self._keys.members)
        args = (member.instance_id, member.incarnation, self._keys.changes_channel)
        await self._script(scripts.WITHDRAW, keys, args)

    async def members(self) -> tuple[Member, ...]:
        """Who has not expired."""
        return (await self.snapshot()).members

    async def snapshot(self) -> Snapshot:
        """One reading of the store, in one round trip."""
        reply = await self._script(
            scripts.READ,
            (self._keys.members, self._keys.memory),
            # One byte more than allowed: a longer record must be seen to be too long.
            (self._keys.member_prefix, MAX_MEMBERS, MAX_MEMBER_JSON_BYTES + 1),
        )
        if not isinstance(reply, list) or len(reply) % 2 != 1:
            raise RegistryUnavailable(f"{self._where}: not a reply to our script")
        memory, *flat = [_text(item) for item in reply]
        pairs = zip(flat[::2], flat[1::2], strict=True)
        records = read_records((key, text) for key, text in pairs if text)
        self._report(records.problems)
        return Snapshot(members=records.members, memory=memory)

    def watch(self) -> AsyncGenerator[tuple[Member, ...], None]:
        """Membership now and after each change."""
        source = _RedisSource(self, self._pace.reread_s)
        return watch(source, self._pace, self._clock, self._closed)

    async def put_plan(self, text: str) -> None:
        """Replace the plan."""
        check_plan(text)
        await self.call(lambda: self._client.set(self._keys.plan, text))

    async def plan(self) -> str | None:
        """The plan as last put."""
        # A range bounds what a damaged store can make us read; an absent key reads as empty.
        data = await self.call(lambda: self._client.getrange(self._keys.plan, 0, MAX_PLAN_BYTES))
        return _text(data) or None

    async def shared_key(self, proposal: bytes) -> bytes:
        """The first one proposed."""
        text, key = key_to_text(proposal), self._keys.shared_key
        await self.call(lambda: self._client.set(key, text, nx=True))
        # One character more than it may have: a longer one must be seen to be too long.
        stored = await self.call(lambda: self._client.getrange(key, 0, 2 * KEY_BYTES))
        return key_from_text(_text(stored))

    async def put_settings(self, draft: Draft, *, expected_version: int | None = None) -> int:
        """Add an edition; its version."""
        expected = -1 if expected_version is None else expected_version
        reply = await self._script(
            scripts.PUT_SETTINGS,
            (self._keys.settings, self._keys.settings_version),
            (draft.payload(), expected, MAX_EDITIONS),
        )
        if not isinstance(reply, int):
            raise RegistryUnavailable(f"{self._where}: not a reply to our script")
        if reply <= 0:
            raise conflict(expected, -reply)
        return reply

    async def settings_version(self) -> int:
        """Of the newest edition."""
        reply = await self.call(lambda: self._client.get(self._keys.settings_version))
        text = _text(reply or b"0")
        return int(text) if text.isdecimal() else 0

    async def editions(self) -> tuple[Edition, ...]:
        """The newest last."""
        call = partial(self._client.lrange, self._keys.settings, -MAX_EDITIONS, -1)
        reply = await self.call(call)
        entries = [_text(item) for item in reply] if isinstance(reply, list) else []
        found = (edition_of(text) for text in entries if len(text) <= MAX_ENTRY_BYTES)
        return tuple(edition for edition in found if edition is not None)

    async def lease_quota(self, ask: QuotaAsk, *, ttl_s: float) -> QuotaGrant:
        """By the store's clock."""
        check_ttl(ttl_s)
        reply = await self._script(
            scripts.LEASE_QUOTA,
            (self._keys.quota(ask.tenant),),
            (ask.router_id, f"{ask.share:.9f}", f"{ask.demand:.3f}", round(ttl_s * 1000)),
        )
        try:
            share, demand, others = [float(_text(item)) for item in cast("list[object]", reply)]
        except (TypeError, ValueError):
            raise RegistryUnavailable(f"{self._where}: not a reply to our script") from None
        return QuotaGrant(share=share, other_demand=demand, num_others=int(others))

    async def now_s(self) -> float:
        """The store's own clock."""
        reply = await self.call(lambda: self._client.time())
        match reply:
            case (int(seconds), int(microseconds)):
                return seconds + microseconds / 1e6
        raise RegistryUnavailable(f"{self._where}: not a reply to TIME")

    async def close(self) -> None:
        """End all watches and drop all connections."""
        self._closed.set()
        await self._disconnect()

    def subscription(self) -> "PubSub":
        """A fresh listener for changes, not yet subscribed."""
        return self._client.pubsub(ignore_subscribe_messages=True)

    async def subscribe(self, listener: "PubSub") -> None:
        """Let `listener` hear of changes."""
        await self.call(lambda: listener.subscribe(self._keys.changes_channel))

    async def call(
        self, operation: Callable[[], object], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> object:
        """Await what `operation` begins: bounded, its errors as ours, never after `close`."""
        self._check_open()
        num_cancels = _num_cancels()
        try:
            async with asyncio.timeout(timeout_s):
                # The client's own types allow for its synchronous twin.
                result = await cast("Awaitable[object]", operation())
        except (RedisError, OSError, TimeoutError) as error:
            # Cut: the text may come from the store.
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise RegistryUnavailable(f"{self._where}: {reason}") from error
        if _num_cancels() > num_cancels:
            # The client writes with asyncio.wait_for, which in Python 3.11 forgets a cancel that
            # comes together with its result: the loop above us would never end.
            raise asyncio.CancelledError
        if self._closed.is_set():
            # The client reconnects by itself, also a call that `close` found in flight.
            await self._disconnect()
        self._check_open()
        return result

    async def _script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> object:
        return await self.call(lambda: self._client.eval(script, len(keys), *keys, *args))

    async def _disconnect(self) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._client.aclose()
                await self._client.connection_pool.disconnect()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RegistryUnavailable(f"{self._where}: this handle is closed")

    def _report(self, problems: dict[str, str]) -> None:
        for instance_id in problems.keys() - self._unreadable.keys():
            # The id is the store's word: `%r` keeps it on one line.
            logger.warning("member left out: %r: %s", instance_id[:128], problems[instance_id])
        self._unreadable = problems


class _RedisSource:
    """Polls, and subscribes to be nudged in between."""

    def __init__(self, registry: RedisRegistry, reread_s: float) -> None:
        self._registry = registry
        self._reread_s = reread_s
        self._listener: PubSub | None = None

    async def snapshot(self) -> Snapshot:
        return await self._registry.snapshot()

    async def changed(self) -> None:
        try:
            if self._listener is None:
                self._listener = self._registry.subscription()
                # Returns at once, to read again: a change before the subscription was not heard.
                await self._registry.subscribe(self._listener)
            else:
                await self._nudged(self._listener)
        except RegistryUnavailable:
            await self.close()
            raise

    async def _nudged(self, listener: "PubSub") -> None:
        timeout_s = self._reread_s
        for _ in range(MAX_NUDGES_AT_ONCE):
            message = await self._registry.call(
                partial(listener.get_message, timeout=timeout_s),
                timeout_s=timeout_s + CALL_TIMEOUT_S,
            )
            if message is None:
                return
            timeout_s = 0.0

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await listener.aclose()  # type: ignore[no-untyped-call]


def _text(item: object) -> str:
    """What the store sent, as text; damage becomes characters that no record may hold."""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _num_cancels() -> int:
    """Cancels asked of the running task and not taken back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
