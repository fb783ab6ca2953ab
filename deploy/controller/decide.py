"""What to do so that the cluster becomes what its plan says. A pure function of both.

Roles change first, since nothing has to be loaded for it; then members are started; one that is too
many, or of an older make, leaves only when enough others serve.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from core.member import Role
from deploy.controller.seen import MemberState, Seen

POOLS = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPool:
    """So many members of one make."""

    num: int
    make: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the plan asks for."""

    pools: Mapping[Role, WantedPool]
    """Of POOLS, each."""
    routers: WantedPool
    max_surge: int
    """Instances more than wanted while others are replaced."""

    @property
    def num_instances(self) -> int:
        """Of all pools."""
        return sum(pool.num for pool in self.pools.values())

    @property
    def num_missing(self) -> int:
        """So many fewer may serve while others are replaced."""
        return 0 if self.max_surge else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A new member."""

    role: Role
    make: str
    name: str = ""
    """Of a router, which keeps its name and its ports; instances get a new one each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A member is to leave."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRole:
    """An instance is to do other work."""

    name: str
    role: Role


Action: TypeAlias = Start | Drain | ChangeRole


def router_name(index: int) -> str:
    """Of one of the routers, from 0."""
    return f"router-{index}"


def decide(wanted: Wanted, seen: Sequence[Seen]) -> tuple[Action, ...]:
    """All that can be done now. Done already, nothing more comes of the same plan."""
    instances = [member for member in seen if not member.is_router]
    changes = role_changes(wanted, instances)
    after = _changed(instances, changes)
    starts, drains = tuple(_starts(wanted, after)), tuple(_drains(wanted, after))
    # Routers last: an older one knows how to place on newer instances.
    is_new = not starts and not drains and all(m.serves for m in after)
    routers = [member for member in seen if member.is_router]
    return (*changes, *starts, *drains, *_router_actions(wanted.routers, routers, is_new))


def lacks(wanted: Wanted, seen: Sequence[Seen]) -> Iterator[str]:
    """What the cluster is still short of, or has too much of; nothing: it is as planned."""
    for role, pool in (*wanted.pools.items(), (Role.ROUTER, wanted.routers)):
        of_role = [member for member in seen if member.role is role]
        num = sum(m.serves and m.make == pool.make for m in of_role)
        if num != pool.num:
            yield f"{role}: {num} of {pool.num} serve"
        states = Counter(m.state for m in of_role if m.state is not MemberState.SERVING)
        yield from (f"{role}: {count} {state}" for state, count in states.items())
        if num_old := sum(m.serves and m.make != pool.make for m in of_role):
            yield f"{role}: {num_old} to be replaced"


def role_changes(wanted: Wanted, instances: Sequence[Seen]) -> tuple[ChangeRole, ...]:
    """Of instances that are too many where they are, and of the make that is short elsewhere; all
    together they leave no role with fewer than it needs."""
    changes = list(_moves(wanted, instances))
    while (early := _too_early(wanted, instances, changes)) is not None:
        changes.remove(early)
    return tuple(changes)


def _moves(wanted: Wanted, instances: Sequence[Seen]) -> Iterator[ChangeRole]:
    spare = [member for member in _too_many(wanted, instances) if member.serves]
    for role in POOLS:
        pool = wanted.pools[role]
        for _ in range(pool.num - _num_good(wanted, instances, role)):
            fitting = [m for m in spare if m.make == pool.make and m.role is not role]
            if not fitting:
                break
            spare.remove(fitting[0])
            yield ChangeRole(name=fitting[0].name, role=role)


def _too_early(
    wanted: Wanted, instances: Sequence[Seen], changes: Sequence[ChangeRole]
) -> ChangeRole | None:
    """One that leaves too few behind: those that replace it where it is do not serve yet."""
    roles = {member.name: member.role for member in instances}
    after = Counter(member.role for member in _changed(instances, changes) if member.serves)
    for change in changes:
        role = roles[change.name]
        if after[role] < wanted.pools[role].num - wanted.num_missing:
            return change
    return None


def _changed(instances: Sequence[Seen], changes: Sequence[ChangeRole]) -> list[Seen]:
    roles = {change.name: change.role for change in changes}
    return [replace(m, role=roles.get(m.name, m.role)) for m in instances]


def _starts(wanted: Wanted, instances: Sequence[Seen]) -> Iterator[Start]:
    """The pool that is shortest, by share, first: so both phases of a new make come up together."""
    room = wanted.num_instances + wanted.max_surge - len(instances)
    good = {role: _num_good(wanted, instances, role) for role in POOLS}
    while room > 0:
        short = [role for role in POOLS if good[role] < wanted.pools[role].num]
        if not short:
            return
        role = min(short, key=lambda r: good[r] / wanted.pools[r].num)
        yield Start(role=role, make=wanted.pools[role].make)
        good[role] += 1
        room -= 1


def _drains(wanted: Wanted, instances: Sequence[Seen]) -> Iterator[Drain]:
    """Whoever is too many and does not serve yet, at once; who serves, as others can replace it."""
    missing = wanted.num_missing
    serving = Counter(member.role for member in instances if member.serves)
    for member in _too_many(wanted, instances):
        if member.serves:
            least, in_role = wanted.num_instances - missing, wanted.pools[member.role].num - missing
            if serving.total() - 1 < least or serving[member.role] - 1 < in_role:
                continue
            serving[member.role] -= 1
        is_old = member.make != wanted.pools[member.role].make
        yield Drain(name=member.name, reason="another make is planned" if is_old else "too many")


def _too_many(wanted: Wanted, instances: Sequence[Seen]) -> Iterator[Seen]:
    """Live instances beyond the plan: older makes, and of the right one those that came last."""
    for role, pool in wanted.pools.items():
        live = [member for member in instances if member.is_live and member.role is role]
        yield from (member for member in live if member.make != pool.make)
        good = [member for member in live if member.make == pool.make]
        good.sort(key=lambda m: (not m.serves, m.since_s, m.name))
        yield from reversed(good[pool.num :])


def _num_good(wanted: Wanted, instances: Sequence[Seen], role: Role) -> int:
    make = wanted.pools[role].make
    return sum(m.is_live and m.role is role and m.make == make for m in instances)


def _router_actions(wanted: WantedPool, routers: Sequence[Seen], is_new: bool) -> Iterator[Action]:
    names = [router_name(index) for index in range(wanted.num)]
    present = {member.name for member in routers}
    for name in names:
        if name not in present:
            yield Start(role=Role.ROUTER, make=wanted.make, name=name)
    for member in routers:
        if member.is_live and member.name not in names:
            yield Drain(name=member.name, reason="too many")
    # One at a time: clients go on at another.
    if is_new and all(member.serves for member in routers) and present == set(names):
        for member in (m for m in routers if m.make != wanted.make):
            yield Drain(name=member.name, reason="another make is planned")
            return
