"""What a registry is: who is in the cluster, and what the plan is."""

from collections.abc import AsyncIterator
from typing import Protocol

from core.errors import BatonError
from core.member import Member

MAX_PLAN_BYTES = 1024 * 1024
"""A plan of thousands of instances is some hundred KiB of TOML."""
MAX_TTL_S = 60.0
"""A dead member must not be shown for longer; a heartbeat is a second."""


class RegistryUnavailable(BatonError):
    """The store cannot be reached, or refuses; what was last known still holds."""

    status = "UNAVAILABLE"
    retryable = True


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

        Keeps quiet while the store is away. Members of a store that lost its memory are shown
        for `view.REJOIN_GRACE_S` more, within which the living announce themselves again.
        """
        ...

    async def put_plan(self, text: str) -> None:
        """Replace the plan; at most MAX_PLAN_BYTES."""
        ...

    async def plan(self) -> str | None:
        """The plan as last put; None when there is none."""
        ...

    async def close(self) -> None:
        """End all watches and drop all connections; idempotent."""
        ...
