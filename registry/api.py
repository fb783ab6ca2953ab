"""What a registry is: who is in the cluster, who leads it, and what it is to be."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from core.errors import BatonError, ConfigError
from core.ids import RouterId
from core.member import Member
from core.prefix import KEY_BYTES
from registry.cluster_state import ClusterState
from registry.editions import Draft, Edition
from registry.leader import Leader

MAX_TTL_S = 60.0
"""A dead member must not be shown for longer; a heartbeat is a second."""


class RegistryUnavailable(BatonError):
    """The store cannot be reached, or refuses; what was last known still holds."""

    status = "UNAVAILABLE"
    retryable = True


class SharedKeyDamaged(RegistryUnavailable):
    """What the store holds as the cluster's key is none."""

    retryable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaAsk:
    """One router's wish."""

    tenant: str
    router_id: RouterId
    share: float
    """Wanted, 0 to 1."""
    demand: float
    """Tokens per second that its clients want; told to the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaGrant:
    """What it got, and what the others want."""

    share: float
    other_demand: float
    num_others: int
    """Routers that hold a lease."""


class Registry(Protocol):
    """One handle on the cluster's store. Every call is bounded in time.

    All but `watch` and `close` raise RegistryUnavailable when the store does not answer.
    """

    async def announce(self, member: Member, *, ttl_s: float) -> None:
        """Publish `member` for `ttl_s` seconds, or again; the heartbeat. Replaces its id's last."""
        ...

    async def withdraw(self, member: Member) -> None:
        """Remove this incarnation of `member`; nothing happens when it is gone or replaced."""
        ...

    async def members(self) -> tuple[Member, ...]:
        """What the store holds this moment, by instance id; unreadable records are left out."""
        ...

    def watch(self) -> AsyncIterator[tuple[Member, ...]]:
        """Membership now and after each change, until `close`.

        Keeps quiet while the store is away. When it comes back, or lost its memory, those last
        known are shown for `view.REJOIN_GRACE_S` more: the living announce themselves in time.
        """
        ...

    async def lead(self, holder: str, address: str, *, term: int | None, ttl_s: float) -> int:
        """Become leader for `ttl_s` seconds, or, with the term one holds, stay it; the term.

        A new term is granted when nobody leads, and is above all before it, also those of a store
        that has lost its memory since: it is the store's clock in milliseconds at least. One's own
        is renewed, or taken back, as long as no higher one is known. Otherwise raises AnotherLeads.
        """
        ...

    async def resign(self, holder: str, term: int) -> None:
        """Lead no longer; nothing happens when somebody else does, or nobody."""
        ...

    async def leader(self) -> Leader | None:
        """Who leads this moment."""
        ...

    async def put_deployment(self, text: str, *, term: int) -> None:
        """Replace what the cluster is to be; at most MAX_DEPLOYMENT_BYTES. An empty one is none.

        Raises AnotherLeads when a higher term is known.
        """
        ...

    async def deployment(self) -> str | None:
        """As last put; None when there is none, perhaps because the store lost its memory."""
        ...

    async def shared_key(self, proposal: bytes) -> bytes:
        """The cluster's secret of KEY_BYTES bytes: the first one that anybody ever proposed.

        It outlives its members. Raises SharedKeyDamaged when the store holds something else.
        """
        ...

    async def now_s(self) -> float:
        """The store's own clock, the one that all processes can agree on; seconds, may jump."""
        ...

    async def put_settings(self, draft: Draft, *, expected_version: int | None = None) -> int:
        """Add an edition of the settings; its version.

        Raises EditionConflict when there is a newer one than expected (0: none yet).
        """
        ...

    async def settings_version(self) -> int:
        """Of the newest edition; 0: there is none."""
        ...

    async def editions(self) -> tuple[Edition, ...]:
        """Of the settings: the last MAX_EDITIONS, the newest last; damaged ones are left out."""
        ...

    async def lease_quota(self, ask: QuotaAsk, *, ttl_s: float) -> QuotaGrant:
        """Lease a share of one tenant's quota for `ttl_s`, in place of the one held; all leases of
        a tenant never sum to more than 1."""
        ...

    async def state(self) -> ClusterState:
        """All that does not expire, of one moment; damaged editions are left out.

        Raises SharedKeyDamaged.
        """
        ...

    async def restore(self, state: ClusterState, *, replace: bool = False) -> None:
        """Put it all, at once; it has no problems. Raises ClusterNotEmpty unless to `replace`.

        Replacing, terms do not go down, and the newest settings are put as one more edition, so
        that whoever has others in force takes them over.
        """
        ...

    async def problems(self) -> tuple[str, ...]:
        """What is wrong with the store itself, as far as it tells; see store_check.py."""
        ...

    async def forget(self) -> None:
        """Everything of this cluster, the leader and living members included: it has ended."""
        ...

    async def close(self) -> None:
        """End all watches and drop all connections; idempotent."""
        ...


def granted_share(wanted: float, leased_to_others: float) -> float:
    """What can be leased of it: the sum of all leases never passes 1."""
    return max(0.0, min(wanted, 1.0 - leased_to_others))


def check_ttl(ttl_s: float) -> None:
    """Refuse a time to live that no heartbeat can mean."""
    if not 0.001 <= ttl_s <= MAX_TTL_S:
        raise ConfigError((f"ttl_s must be 0.001 to {MAX_TTL_S}, got {ttl_s}",))


def key_to_text(key: bytes) -> str:
    """As the store keeps it. Refuses a key of another length."""
    if len(key) != KEY_BYTES:
        raise ConfigError((f"shared key of {len(key)} bytes, must be {KEY_BYTES}",))
    return key.hex()


def key_from_text(text: str) -> bytes:
    """What `key_to_text` wrote. Raises SharedKeyDamaged, which never shows it."""
    if len(text) != 2 * KEY_BYTES or set(text) - set("0123456789abcdef"):
        raise SharedKeyDamaged(f"shared key: not {2 * KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(text)
