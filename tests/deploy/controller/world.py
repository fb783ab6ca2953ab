"""A cluster in which every action of `decide` comes true after a while; members may die."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from core.member import Role
from deploy.controller.decide import (
    POOLS,
    Action,
    ChangeRole,
    Drain,
    Start,
    Wanted,
    WantedPool,
    decide,
    lacks,
)
from deploy.controller.seen import MemberState, Seen

Look = Callable[["World", tuple[Action, ...]], None]

SETTLE_STEPS = 200
"""A rolling update of ten instances, one at a time, takes some forty."""


def wanted_of(  # a table's row
    prefill: int = 0,
    decode: int = 0,
    mixed: int = 0,
    *,
    makes: str = "AAA",
    routers: int = 1,
    router_make: str = "R",
    max_surge: int = 1,
) -> Wanted:
    """So many of each; `makes`: one letter for each pool."""
    nums = (prefill, decode, mixed)
    pools = zip(POOLS, nums, makes, strict=True)
    return Wanted(
        pools={role: WantedPool(num=num, make=make) for role, num, make in pools},
        routers=WantedPool(num=routers, make=router_make),
        max_surge=max_surge,
    )


def member(
    name: str, role: Role, make: str, state: MemberState = MemberState.SERVING, since_s: float = 0.0
) -> Seen:
    """One of a table's row."""
    return Seen(name=name, role=role, make=make, state=state, since_s=since_s)


class World:
    """Owns the members. Time is counted in steps."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.members: dict[str, Seen] = {}
        self._num_steps = 0
        self._names = (f"instance-{index:04}" for index in count())

    def after(self, actions: Sequence[Action]) -> "World":
        """Another one, in which these have begun."""
        other = World(self.wanted)
        other.members, other._names = dict(self.members), self._names
        for action in actions:
            other.apply(action)
        return other

    @property
    def seen(self) -> Sequence[Seen]:
        """In order of name, as the roster shows them."""
        return tuple(self.members[name] for name in sorted(self.members))

    @property
    def instances(self) -> list[Seen]:
        """All but the routers."""
        return [each for each in self.seen if not each.is_router]

    @property
    def is_settled(self) -> bool:
        """Nothing is lacking."""
        return not list(lacks(self.wanted, self.seen))

    def num_serving(self, role: Role | None = None) -> int:
        """Of a role, or of all instances."""
        return sum(m.serves and role in (None, m.role) for m in self.instances)

    def share_good(self, role: Role) -> float:
        """Of the wanted ones of a role: those that live, and are of its make."""
        return self.num_good(role) / self.wanted.pools[role].num

    def num_good(self, role: Role) -> int:
        """Those that live, and are of the make that is wanted."""
        make = self.wanted.pools[role].make
        return sum(m.is_live and m.role is role and m.make == make for m in self.instances)

    def apply(self, action: Action) -> None:
        """Begin what is to be done."""
        match action:
            case Start():
                name = action.name or next(self._names)
                assert name not in self.members, f"{name} is still there"
                self._put(member(name, action.role, action.make, MemberState.STARTING))
            case Drain():
                assert self.members[action.name].is_live, f"{action.name} is leaving already"
                self._put(replace(self.members[action.name], state=MemberState.DRAINING))
            case ChangeRole():
                assert self.members[action.name].serves, f"{action.name} cannot be asked"
                self.members[action.name] = replace(self.members[action.name], role=action.role)

    def pass_time(self, ready: Callable[[int], bool] = lambda _: True) -> None:
        """Whoever `ready` says, by place, gets one state further."""
        self._num_steps += 1
        for index, each in enumerate(self.seen):
            if not ready(index):
                continue
            if each.state is MemberState.STARTING:
                self._put(replace(each, state=MemberState.SERVING))
            elif not each.serves:
                del self.members[each.name]

    def die(self, index: int) -> None:
        """Unasked for; its place is cleared with the next step."""
        live = [each for each in self.seen if each.is_live]
        if live:
            self._put(replace(live[index % len(live)], state=MemberState.LOST))

    def act(self, look: Look = lambda world, actions: None) -> tuple[Action, ...]:
        """Do what is decided; `look` sees the world before it."""
        actions = decide(self.wanted, self.seen)
        look(self, actions)
        for action in actions:
            self.apply(action)
        return actions

    def settle(self, look: Look = lambda world, actions: None) -> Iterator[tuple[Action, ...]]:
        """Until there is nothing to do; what was done in each step."""
        for _ in range(SETTLE_STEPS):
            actions = self.act(look)
            if not actions and self.is_settled:
                return
            yield actions
            self.pass_time()
        raise AssertionError(f"not settled: {list(lacks(self.wanted, self.seen))}, {self.seen}")

    def _put(self, each: Seen) -> None:
        self.members[each.name] = replace(each, since_s=float(self._num_steps))


def settled(wanted: Wanted) -> World:
    """A cluster that is as planned."""
    world = World(wanted)
    for _ in world.settle():
        pass
    return world
