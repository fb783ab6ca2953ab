"""The registry in a Redis-compatible store; the only module that speaks to one."""

import logging
import secrets
from collections.abc import AsyncGenerator
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from core.clock import Clock, MonotonicClock
from core.member import MAX_MEMBER_JSON_BYTES, Member
from core.prefix import KEY_BYTES
from registry import scripts
from registry.api import (
    QuotaAsk,
    QuotaGrant,
    RegistryUnavailable,
    check_ttl,
    key_from_text,
    key_to_text,
)
from registry.cluster_state import ClusterState, not_empty
from registry.deployment import MAX_DEPLOYMENT_BYTES, check_deployment
from registry.editions import (
    MAX_EDITIONS,
    MAX_ENTRY_BYTES,
    Draft,
    Edition,
    conflict,
    edition_of,
    entry_of,
)
from registry.keys import Keys
from registry.leader import MAX_RECORD_BYTES, AnotherLeads, Leader, check_candidate, leader_of
from registry.redis_source import RedisSource
from registry.store_calls import StoreCalls, text_of
from registry.store_check import eviction_problems
from registry.view import Snapshot, read_records
from registry.watching import DEFAULT_PACE, WatchPace, watch

logger = logging.getLogger(__name__)

MAX_MEMBERS = 1024
"""Read at most; 64 MiB at the very worst, 0.5 MiB in earnest."""
MAX_VERSION_DIGITS = 16

SCAN_COUNT = 1000
"""Keys looked at per step; a store takes well under a millisecond for them."""


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
        self._calls = StoreCalls(client, where)
        self._keys = keys
        self._clock = clock or MonotonicClock()
        self._pace = pace
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
        await self._calls.script(scripts.ANNOUNCE, keys, args)

    async def withdraw(self, member: Member) -> None:
        """Remove this incarnation."""
        keys = (self._keys.member(member.instance_id), self._keys.members)
        args = (member.instance_id, member.incarnation, self._keys.changes_channel)
        await self._calls.script(scripts.WITHDRAW, keys, args)

    async def members(self) -> tuple[Member, ...]:
        """Who has not expired."""
        return (await self.snapshot()).members

    async def snapshot(self) -> Snapshot:
        """One reading of the store, in one round trip."""
        reply = await self._calls.texts(
            scripts.READ,
            (self._keys.members, self._keys.memory),
            # One byte more than allowed: a longer record must be seen to be too long.
            (self._keys.member_prefix, MAX_MEMBERS, MAX_MEMBER_JSON_BYTES + 1),
        )
        if len(reply) % 2 != 1:
            raise self._calls.unavailable("not a reply to our script")
        memory, *flat = reply
        pairs = zip(flat[::2], flat[1::2], strict=True)
        records = read_records((key, text) for key, text in pairs if text)
        self._report(records.problems)
        return Snapshot(members=records.members, memory=memory)

    def watch(self) -> AsyncGenerator[tuple[Member, ...], None]:
        """Membership now and after each change."""
        source = RedisSource(
            self._calls,
            self.snapshot,
            channel=self._keys.changes_channel,
            reread_s=self._pace.reread_s,
        )
        return watch(source, self._pace, self._clock, self._calls.closed)

    async def lead(self, holder: str, address: str, *, term: int | None, ttl_s: float) -> int:
        """Become leader, or stay it; the term."""
        check_ttl(ttl_s)
        check_candidate(holder, address, term)
        granted, *records = await self._calls.texts(
            scripts.LEAD,
            (self._keys.leader, self._keys.term),
            (holder, address, term or 0, round(ttl_s * 1000)),
        )
        leader = leader_of(records[0]) if records else None
        if leader is None:
            raise self._calls.unavailable("not a reply to our script")
        if granted != "1":
            raise AnotherLeads(leader)
        return leader.term

    async def resign(self, holder: str, term: int) -> None:
        """Lead no longer."""
        await self._calls.script(scripts.RESIGN, (self._keys.leader,), (holder, term))

    async def leader(self) -> Leader | None:
        """Who leads this moment."""
        call = partial(self._client.getrange, self._keys.leader, 0, MAX_RECORD_BYTES)
        return leader_of(text_of(await self._calls.call(call)))

    async def put_deployment(self, text: str, *, term: int) -> None:
        """Replace what the cluster is to be."""
        check_deployment(text, term)
        keys = (self._keys.deployment, self._keys.term)
        record = text_of(await self._calls.script(scripts.PUT_DEPLOYMENT, keys, (text, term)))
        if (leader := leader_of(record)) is not None:
            raise AnotherLeads(leader)

    async def deployment(self) -> str | None:
        """As last put."""
        # A range bounds what a damaged store can make us read; an absent key reads as empty.
        call = partial(self._client.getrange, self._keys.deployment, 0, MAX_DEPLOYMENT_BYTES)
        return text_of(await self._calls.call(call)) or None

    async def shared_key(self, proposal: bytes) -> bytes:
        """The first one proposed."""
        text, key = key_to_text(proposal), self._keys.shared_key
        await self._calls.call(lambda: self._client.set(key, text, nx=True))
        # One character more than it may have: a longer one must be seen to be too long.
        stored = await self._calls.call(lambda: self._client.getrange(key, 0, 2 * KEY_BYTES))
        return key_from_text(text_of(stored))

    async def put_settings(self, draft: Draft, *, expected_version: int | None = None) -> int:
        """Add an edition; its version."""
        expected = -1 if expected_version is None else expected_version
        reply = await self._calls.script(
            scripts.PUT_SETTINGS,
            (self._keys.settings, self._keys.settings_version),
            (draft.payload(), expected, MAX_EDITIONS),
        )
        if not isinstance(reply, int):
            raise self._calls.unavailable("not a reply to our script")
        if reply <= 0:
            raise conflict(expected, -reply)
        return reply

    async def settings_version(self) -> int:
        """Of the newest edition."""
        reply = await self._calls.call(lambda: self._client.get(self._keys.settings_version))
        text = text_of(reply or b"0")
        return int(text) if text.isdecimal() else 0

    async def editions(self) -> tuple[Edition, ...]:
        """The newest last."""
        call = partial(self._client.lrange, self._keys.settings, -MAX_EDITIONS, -1)
        reply = await self._calls.call(call)
        entries = [text_of(item) for item in reply] if isinstance(reply, list) else []
        found = (edition_of(text) for text in entries if len(text) <= MAX_ENTRY_BYTES)
        return tuple(edition for edition in found if edition is not None)

    async def lease_quota(self, ask: QuotaAsk, *, ttl_s: float) -> QuotaGrant:
        """By the store's clock."""
        check_ttl(ttl_s)
        reply = await self._calls.texts(
            scripts.LEASE_QUOTA,
            (self._keys.quota(ask.tenant),),
            (ask.router_id, f"{ask.share:.9f}", f"{ask.demand:.3f}", round(ttl_s * 1000)),
        )
        try:
            share, demand, others = [float(text) for text in reply]
        except ValueError:
            raise self._calls.unavailable("not a reply to our script") from None
        return QuotaGrant(share=share, other_demand=demand, num_others=int(others))

    async def now_s(self) -> float:
        """The store's own clock."""
        reply = await self._calls.call(lambda: self._client.time())
        match reply:
            case (int(seconds), int(microseconds)):
                return seconds + microseconds / 1e6
        raise self._calls.unavailable("not a reply to TIME")

    async def state(self) -> ClusterState:
        """All that does not expire."""
        keys = (self._keys.deployment, self._keys.term, self._keys.shared_key)
        most = (MAX_DEPLOYMENT_BYTES + 1, MAX_RECORD_BYTES, 2 * KEY_BYTES + 1, MAX_VERSION_DIGITS)
        reply = await self._calls.texts(
            scripts.STATE,
            (*keys, self._keys.settings_version, self._keys.settings),
            (*most, MAX_ENTRY_BYTES, MAX_EDITIONS),
        )
        deployment, record, key_text, version, *entries = reply
        editions = tuple(edition for entry in entries if (edition := edition_of(entry)))
        return ClusterState(
            deployment=deployment or None,
            settings_version=int(version) if version.isdecimal() else 0,
            editions=editions,
            shared_key=key_from_text(key_text) if key_text else None,
            last_leader=leader_of(record),
        )

    async def restore(self, state: ClusterState, *, replace: bool = False) -> None:
        """Put it all, at once."""
        newest = state.newest_again()
        reply = await self._calls.script(
            scripts.RESTORE,
            (
                self._keys.deployment,
                self._keys.term,
                self._keys.shared_key,
                self._keys.settings_version,
                self._keys.settings,
                self._keys.members,
            ),
            (
                int(replace),
                state.deployment or "",
                state.last_leader.record() if state.last_leader else "",
                key_to_text(state.shared_key) if state.shared_key else "",
                state.settings_version,
                newest.payload() if newest else "",
                MAX_EDITIONS,
                *(entry_of(edition) for edition in state.editions),
            ),
        )
        if reply != 1:
            raise not_empty()

    async def problems(self) -> tuple[str, ...]:
        """What is wrong with the store itself."""
        try:
            # Not CONFIG GET, which stores that somebody else runs refuse.
            reply = await self._calls.call(lambda: self._client.info("memory"))
        except RegistryUnavailable as error:
            if isinstance(error.__cause__, ResponseError):
                return ()  # it may not be asked
            raise
        return eviction_problems(reply)

    async def forget(self) -> None:
        """Every key of the cluster, in as many steps as the store needs to find them."""
        cursor = 0
        while True:
            found = partial(self._client.scan, cursor, f"{self._keys.prefix}*", SCAN_COUNT)
            reply = await self._calls.call(found)
            assert isinstance(reply, tuple | list)
            cursor, keys = int(reply[0]), list(reply[1])
            if keys:
                await self._calls.call(partial(self._client.delete, *keys))
            if cursor == 0:
                return

    async def close(self) -> None:
        """End all watches and drop all connections."""
        await self._calls.close()

    def _report(self, problems: dict[str, str]) -> None:
        for instance_id in problems.keys() - self._unreadable.keys():
            # The id is the store's word: `%r` keeps it on one line.
            logger.warning("member left out: %r: %s", instance_id[:128], problems[instance_id])
        self._unreadable = problems
