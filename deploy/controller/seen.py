"""An instance or a router as the controller sees it, and the states it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from core.member import Role
from core.tables import Ruling, Table


class MemberState(StrEnum):
    """Where it is between its order and its end."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    LOST = "lost"
    """Ended without being asked to; its place has to be cleared."""
    GONE = "gone"
    """Ended, and nothing of it is left."""


class MemberEvent(StrEnum):
    """What is heard of it."""

    READY = "ready"
    DRAIN = "drain"
    ENDED = "ended"
    CLEARED = "cleared"


MEMBER_TABLE = Table(
    "member",
    MemberState,
    MemberEvent,
    {
        MemberState.STARTING: {
            MemberEvent.READY: MemberState.SERVING,
            MemberEvent.DRAIN: MemberState.DRAINING,
            MemberEvent.ENDED: MemberState.LOST,
            MemberEvent.CLEARED: Ruling.BUG,
        },
        MemberState.SERVING: {
            MemberEvent.READY: Ruling.BUG,
            MemberEvent.DRAIN: MemberState.DRAINING,
            MemberEvent.ENDED: MemberState.LOST,
            MemberEvent.CLEARED: Ruling.BUG,
        },
        MemberState.DRAINING: {
            # It was asked to leave while it started.
            MemberEvent.READY: Ruling.DROP,
            MemberEvent.DRAIN: Ruling.DROP,
            MemberEvent.ENDED: Ruling.DROP,
            MemberEvent.CLEARED: MemberState.GONE,
        },
        MemberState.LOST: {
            MemberEvent.READY: Ruling.BUG,
            MemberEvent.DRAIN: Ruling.DROP,
            MemberEvent.ENDED: Ruling.BUG,
            MemberEvent.CLEARED: MemberState.GONE,
        },
        MemberState.GONE: dict.fromkeys(MemberEvent, Ruling.BUG),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One member at one moment."""

    name: str
    role: Role
    make: str
    state: MemberState
    since_s: float
    """On the controller's clock: in this state since then."""
    host: str = ""
    """Address of its host; empty while nobody knows."""
    address: str = ""
    http_address: str = ""
    actor_id: str = ""
    bundle: Mapping[str, float] = field(default_factory=dict)
    """Ray resources that it takes of its host."""
    has_place: bool = True
    """Ray has put them aside; until then they seem free."""

    @property
    def is_router(self) -> bool:
        """It computes nothing."""
        return self.role is Role.ROUTER

    @property
    def is_live(self) -> bool:
        """It serves, or will."""
        return self.state in (MemberState.STARTING, MemberState.SERVING)

    @property
    def serves(self) -> bool:
        """It takes requests."""
        return self.state is MemberState.SERVING

    def after(self, event: MemberEvent, now_s: float) -> "Seen":
        """Raises IllegalTransition."""
        state = MEMBER_TABLE.advance(self.state, event)
        return self if state is None else replace(self, state=state, since_s=now_s)
