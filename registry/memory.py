"""A registry inside one process: for tests, for simulations, for a cluster of one."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from core.clock import Clock, MonotonicClock
from core.ids import InstanceId, RouterId
from core.member import Member
from core.waiting import wait_at_most
from registry.api import (
    QuotaAsk,
    QuotaGrant,
    RegistryUnavailable,
    check_ttl,
    granted_share,
    key_from_text,
    key_to_text,
)
from registry.cluster_state import ClusterState, not_empty
from registry.deployment import check_deployment
from registry.editions import MAX_EDITIONS, Draft, Edition, conflict, edition_of, entry_of
from registry.leader import AnotherLeads, Leader, check_candidate, outranks
from registry.view import Snapshot, read_records
from registry.watching import DEFAULT_PACE, WatchPace, watch


@dataclass(frozen=True, slots=True)
class _Entry:
    text: str
    """As JSON, so that what the fake accepts a real store does too."""
    incarnation: str
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class _Lease:
    share: float
    demand: float
    expires_at_s: float


@dataclass(slots=True)
class MemoryStore:
    """What several MemoryRegistry handles share, and the faults a test may plant in it."""

    entries: dict[InstanceId, _Entry] = field(default_factory=dict)
    leader: Leader | None = None
    leads_until_s: float = 0.0
    last_leader: Leader | None = None
    deployment: str | None = None
    shared_key: str | None = field(default=None, repr=False)
    editions: list[str] = field(default_factory=list)
    version: int = 0
    leases: dict[str, dict[RouterId, _Lease]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    num_flushes: int = 0
    reachable: bool = True
    changes: asyncio.Event = field(default_factory=asyncio.Event)

    def nudge(self) -> None:
        """Wake every watch: something changed, or the test moved its clock."""
        self.changes.set()
        self.changes = asyncio.Event()

    def flush(self) -> None:
        """Forget everything, like FLUSHALL."""
        self.entries.clear()
        self.leader = self.last_leader = None
        self.deployment = self.shared_key = None
        self.editions, self.version, self.leases = [], 0, {}
        self.num_flushes += 1
        self.nudge()

    def set_reachable(self, reachable: bool) -> None:
        """Let every call fail from now on, or no longer."""
        self.reachable = reachable
        self.nudge()


class MemoryRegistry:
    """One handle on a MemoryStore; implements Registry."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        *,
        clock: Clock | None = None,
        pace: WatchPace = DEFAULT_PACE,
    ) -> None:
        self.store = store or MemoryStore()
        self._clock = clock or MonotonicClock()
        self._pace = pace
        self._closed = asyncio.Event()

    async def announce(self, member: Member, *, ttl_s: float) -> None:
        """Publish `member` for `ttl_s` seconds of the clock."""
        check_ttl(ttl_s)
        entries = self._live_entries()
        before = entries.get(member.instance_id)
        text = member.to_json()
        entries[member.instance_id] = _Entry(text, member.incarnation, self._clock.now_s() + ttl_s)
        if before is None or before.text != text:
            self.store.nudge()

    async def withdraw(self, member: Member) -> None:
        """Remove this incarnation."""
        entries = self._live_entries()
        entry = entries.get(member.instance_id)
        if entry is not None and entry.incarnation == member.incarnation:
            del entries[member.instance_id]
            self.store.nudge()

    async def members(self) -> tuple[Member, ...]:
        """Who has not expired."""
        return (await self.snapshot()).members

    async def snapshot(self) -> Snapshot:
        """One reading of the store."""
        entries = self._live_entries()
        records = read_records((key, entry.text) for key, entry in entries.items())
        return Snapshot(members=records.members, memory=f"memory-{self.store.num_flushes}")

    def watch(self) -> AsyncGenerator[tuple[Member, ...], None]:
        """Membership now and after each change."""
        source = _MemorySource(self, self._pace.reread_s)
        return watch(source, self._pace, self._clock, self._closed)

    async def lead(self, holder: str, address: str, *, term: int | None, ttl_s: float) -> int:
        """Become leader, or stay it; the term."""
        check_ttl(ttl_s)
        check_candidate(holder, address, term)
        last, now = self.store.last_leader, await self.leader()
        forbids = now if term is None else last if outranks(last, holder, term) else None
        if forbids is not None:
            raise AnotherLeads(forbids)
        next_term = max((last.term if last else 0) + 1, int(self._clock.now_s() * 1000))
        granted = Leader(term=term or next_term, holder=holder, address=address)
        self.store.leader = self.store.last_leader = granted
        self.store.leads_until_s = self._clock.now_s() + ttl_s
        return granted.term

    async def resign(self, holder: str, term: int) -> None:
        """Lead no longer."""
        now = await self.leader()
        if now is not None and (now.holder, now.term) == (holder, term):
            self.store.leader = None

    async def leader(self) -> Leader | None:
        """Who leads this moment."""
        self._check()
        return self.store.leader if self._clock.now_s() < self.store.leads_until_s else None

    async def put_deployment(self, text: str, *, term: int) -> None:
        """Replace what the cluster is to be."""
        self._check()
        check_deployment(text, term)
        if (last := self.store.last_leader) is not None and last.term > term:
            raise AnotherLeads(last)
        self.store.deployment = text

    async def deployment(self) -> str | None:
        """As last put."""
        self._check()
        return self.store.deployment or None

    async def shared_key(self, proposal: bytes) -> bytes:
        """The first one proposed."""
        self._check()
        text = key_to_text(proposal)
        if self.store.shared_key is None:
            self.store.shared_key = text
        return key_from_text(self.store.shared_key)

    async def put_settings(self, draft: Draft, *, expected_version: int | None = None) -> int:
        """Add an edition; its version."""
        self._check()
        store, payload = self.store, draft.payload()
        if expected_version not in (None, store.version):
            raise conflict(expected_version or 0, store.version)
        store.version += 1
        store.editions.append(f"{store.version} {int(self._clock.now_s() * 1000)} {payload}")
        del store.editions[:-MAX_EDITIONS]
        return store.version

    async def settings_version(self) -> int:
        """Of the newest edition."""
        self._check()
        return self.store.version

    async def editions(self) -> tuple[Edition, ...]:
        """The newest last."""
        self._check()
        found = (edition_of(text) for text in self.store.editions)
        return tuple(edition for edition in found if edition is not None)

    async def lease_quota(self, ask: QuotaAsk, *, ttl_s: float) -> QuotaGrant:
        """By its clock."""
        check_ttl(ttl_s)
        self._check()
        now_s = self._clock.now_s()
        leases = self.store.leases.setdefault(ask.tenant, {})
        others = [
            lease
            for router_id, lease in leases.items()
            if router_id != ask.router_id and lease.expires_at_s > now_s
        ]
        share = granted_share(ask.share, sum(lease.share for lease in others))
        leases[ask.router_id] = _Lease(share, ask.demand, now_s + ttl_s)
        demand = sum(lease.demand for lease in others)
        return QuotaGrant(share=share, other_demand=demand, num_others=len(others))

    async def now_s(self) -> float:
        """Its clock."""
        self._check()
        return self._clock.now_s()

    async def state(self) -> ClusterState:
        """All that does not expire."""
        key_text = self.store.shared_key
        return ClusterState(
            deployment=await self.deployment(),
            settings_version=self.store.version,
            editions=await self.editions(),
            shared_key=key_from_text(key_text) if key_text else None,
            last_leader=self.store.last_leader,
        )

    async def restore(self, state: ClusterState, *, replace: bool = False) -> None:
        """Put it all."""
        store, newest = self.store, state.newest_again()
        if not replace and (await self.state() != ClusterState() or self._live_entries()):
            raise not_empty()
        version = max(store.version, state.settings_version)
        store.deployment, store.version = state.deployment, state.settings_version
        store.editions = [entry_of(edition) for edition in state.editions]
        store.shared_key = key_to_text(state.shared_key) if state.shared_key else None
        if (last := state.last_leader) and not outranks(store.last_leader, last.holder, last.term):
            store.last_leader = last
        if replace and newest is not None:
            store.version = version
            await self.put_settings(newest)

    async def problems(self) -> tuple[str, ...]:
        """Those that a test planted."""
        self._check()
        return self.store.problems

    async def forget(self) -> None:
        """All of it."""
        self._check()
        self.store.flush()

    async def close(self) -> None:
        """End this handle's watches; the store and other handles live on."""
        self._closed.set()
        self.store.nudge()

    def _live_entries(self) -> dict[InstanceId, _Entry]:
        self._check()
        now_s = self._clock.now_s()
        entries = self.store.entries
        for key in [key for key, entry in entries.items() if entry.expires_at_s <= now_s]:
            del entries[key]
        return entries

    def _check(self) -> None:
        if self._closed.is_set():
            raise RegistryUnavailable("registry is closed")
        if not self.store.reachable:
            raise RegistryUnavailable("memory store was made unreachable")


class _MemorySource:
    def __init__(self, registry: MemoryRegistry, reread_s: float) -> None:
        self._registry = registry
        self._reread_s = reread_s
        self._seen = registry.store.changes

    async def snapshot(self) -> Snapshot:
        # Taken before reading: a change while the reader is busy is then still to come.
        self._seen = self._registry.store.changes
        return await self._registry.snapshot()

    async def changed(self) -> None:
        await wait_at_most(self._seen, self._reread_s)

    async def close(self) -> None:
        """Nothing is held."""
