"""From what the store says to who is taken to be in the cluster; no IO."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.member import InvalidMember, Member

if TYPE_CHECKING:
    from core.ids import InstanceId

REJOIN_GRACE_S = 5.0
"""How long members of a store that lost its memory are kept: the living announce themselves again
within a heartbeat of 1 s, or 2 s backoff + 2 s call limit when the store was away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One reading of the store."""

    members: tuple[Member, ...]
    memory: str
    """Changes when the store lost what it knew; empty while nobody announced since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The readable members, and the ids of those left out, with why."""

    members: tuple[Member, ...]
    problems: dict[str, str]


def read_records(records: Iterable[tuple[str, str]]) -> Records:
    """Parse (instance id, JSON) pairs; one damaged record never hides the others."""
    members, problems = [], {}
    for instance_id, text in records:
        try:
            member = Member.from_json(text)
        except InvalidMember as error:
            problems[instance_id] = str(error)
            continue
        if member.instance_id == instance_id:
            members.append(member)
        else:
            problems[instance_id] = "names another instance"
    return Records(members=_sorted(members), problems=problems)


class MembershipView:
    """Tells members that left from a store that forgot them, or could not be told of them."""

    def __init__(self, rejoin_grace_s: float = REJOIN_GRACE_S) -> None:
        self._rejoin_grace_s = rejoin_grace_s
        self._memory = ""
        self._shown: tuple[Member, ...] = ()
        self._held: dict[InstanceId, Member] = {}
        self._held_until_s = 0.0
        self._is_blind = False

    def lost_sight(self) -> None:
        """A reading failed: the members, too, may have been unable to announce themselves."""
        self._is_blind = True

    def observe(self, snapshot: Snapshot, now_s: float) -> tuple[Member, ...]:
        """Who is taken to be there after this reading, by instance id."""
        if self._is_blind or snapshot.memory != self._memory:
            self._is_blind, self._memory = False, snapshot.memory
            self._held = {m.instance_id: m for m in self._shown}
            self._held_until_s = now_s + self._rejoin_grace_s
        if now_s >= self._held_until_s:
            self._held = {}
        # Held even when read again: the record may be an old one, about to expire while its member
        # still waits to try again.
        self._shown = _sorted((self._held | {m.instance_id: m for m in snapshot.members}).values())
        return self._shown


def _sorted(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda m: m.instance_id))
