"""Who is in the cluster, as the controller knows it, and what happened of late. Tells watchers."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from core.clock import Clock, unix_time_s
from core.errors import BatonError
from core.member import Role
from deploy.controller.seen import MemberEvent, MemberState, Seen

logger = logging.getLogger(__name__)

MAX_EVENTS = 64


class UnknownMember(BatonError):
    """No instance or router of that name."""

    status = "NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEvent:
    """Something that happened, for people."""

    at_unix_s: float
    member: str
    """Empty: the cluster."""
    text: str


class Roster:
    """Owns the members; everybody else is shown immutable pictures of them."""

    def __init__(self, cluster: str, clock: Clock) -> None:
        self.events: deque[ClusterEvent] = deque(maxlen=MAX_EVENTS)
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, whenever a member or anything told has changed."""
        self._cluster, self._clock = cluster, clock
        self._members: dict[str, Seen] = {}

    @property
    def members(self) -> tuple[Seen, ...]:
        """In order of name."""
        return tuple(self._members[name] for name in sorted(self._members))

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def get(self, name: str) -> Seen:
        """Raises UnknownMember, naming those that there are."""
        try:
            return self._members[name]
        except KeyError:
            there = ", ".join(sorted(self._members)) or "nobody"
            raise UnknownMember(f"no member of that name; there are: {there}") from None

    def put(self, member: Seen) -> None:
        """A new one, or a new picture of one."""
        self._members[member.name] = member
        self.tell()

    def advance(self, name: str, event: MemberEvent) -> Seen:
        """What becomes of it. Raises IllegalTransition."""
        member = self._members[name].after(event, self._clock.now_s())
        self.put(member)
        return member

    def change_role(self, name: str, role: Role) -> None:
        """It does other work from now on."""
        if name in self._members:
            self.put(replace(self._members[name], role=role))

    def remove(self, name: str) -> None:
        """Nothing of it is left."""
        assert self.advance(name, MemberEvent.CLEARED).state is MemberState.GONE
        del self._members[name]
        self.tell()

    def say(self, member: str, text: str) -> None:
        """Something happened; an empty name means the cluster."""
        logger.info("%s %s", member or self._cluster, text)
        self.events.append(ClusterEvent(at_unix_s=unix_time_s(), member=member, text=text))
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[None]:
        """Now, and after each change."""
        while True:
            changed = self.changed
            yield
            await changed.wait()
