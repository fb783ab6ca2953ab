"""What the controller does to processes, as a Protocol: Ray in a cluster, a fake in tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import BatonError
from core.member import Role
from deploy.controller.fit import Host


class Unfinished(BatonError):
    """Ray did not do what it was asked to, or not in time; it may still come to be."""

    status = "UNAVAILABLE"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One member to start."""

    name: str
    kind: str
    """router or instance."""
    role: Role
    make: str
    spec_json: str
    bundle: Mapping[str, float] = field(default_factory=dict)
    """Ray resources; empty: it needs no place of its own."""
    host: str = ""
    """Address of the host it must be on; empty: any."""
    log_level: str = "WARNING"
    log_format: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A member that was there before this controller."""

    name: str
    role: Role
    """As it was started; it may have another by now."""
    make: str
    host: str
    bundle: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """What is known of a process once it serves."""

    address: str
    host: str
    actor_id: str
    load_s: float
    """From the first line of the process to the moment it served."""


class Hands(Protocol):
    """All calls are bounded; they raise Unfinished when Ray cannot be reached."""

    async def hosts(self) -> Sequence[Host]:
        """The living ones, with what is free; our members counted as taking their part."""
        ...

    async def found(self) -> Sequence[Found]:
        """Members of this cluster that live, whoever started them."""
        ...

    async def start(self, order: Order) -> None:
        """Create it; return once it has its place, before it serves. Unfinished: it got none."""
        ...

    async def born(self, name: str) -> Born:
        """Return once it serves. Raises StartFailed with its reason, PeerLost when it died."""
        ...

    async def ended(self, name: str) -> str:
        """Return once it has ended, with the reason as far as anybody knows."""
        ...

    async def end(self, name: str, grace_s: float) -> None:
        """Let it drain so long, then end its process and give back its place; idempotent."""
        ...

    async def read_log(self, name: str, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """A piece of its log, and where the next one begins; also of one that has ended."""
        ...
