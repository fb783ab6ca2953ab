"""What `decide` does, case by case; `test_decide_laws.py` holds the laws they sample."""

from collections.abc import Sequence

import pytest

from core.member import Role
from deploy.controller.decide import (
    Action,
    ChangeRole,
    Drain,
    Start,
    Wanted,
    decide,
    lacks,
    router_name,
)
from deploy.controller.seen import MemberState, Seen
from tests.deploy.controller.world import World, member, settled, wanted_of

P, D, M, R = Role.PREFILL, Role.DECODE, Role.MIXED, Role.ROUTER
STARTING, DRAINING, LOST = MemberState.STARTING, MemberState.DRAINING, MemberState.LOST

TOO_MANY, OLD = "too many", "another make is planned"
ROUTER = member("router-0", R, "R")
P1, P2, P3 = (member(f"p{i}", P, "A", since_s=i) for i in (1, 2, 3))
D1, D2, D3 = (member(f"d{i}", D, "A", since_s=i) for i in (1, 2, 3))
M1, M2 = (member(f"m{i}", M, "A", since_s=i) for i in (1, 2))
STARTING_P = member("p9", P, "A", STARTING, since_s=9)
OLD_STARTING_P = member("p8", P, "old", STARTING, since_s=8)


def start(role: Role, make: str = "A", name: str = "") -> Start:
    return Start(role=role, make=make, name=name)


CASES: list[tuple[str, Wanted, Sequence[Seen], list[Action]]] = [
    (
        "nothing there: all at once, the phases in turn",
        wanted_of(2, 2, max_surge=0),
        [],
        [start(P), start(D), start(P), start(D), start(R, "R", "router-0")],
    ),
    ("as planned", wanted_of(1, 1), [P1, D1, ROUTER], []),
    ("one starts: nothing more", wanted_of(2, 1), [P1, STARTING_P, D1, ROUTER], []),
    ("one is lost, its place not cleared: room by the surge",
     wanted_of(2, 1), [P1, D1, member("p2", P, "A", LOST), ROUTER], [start(P)]),
    ("without a surge its place has to be cleared first",
     wanted_of(2, 1, max_surge=0), [P1, D1, member("p2", P, "A", LOST), ROUTER], []),
    ("too many: those that came last leave",
     wanted_of(1, 1), [P1, P2, P3, D1, ROUTER], [Drain(name="p3", reason=TOO_MANY),
                                                Drain(name="p2", reason=TOO_MANY)]),
    ("too many and one starts: that one leaves",
     wanted_of(1, 1), [P1, STARTING_P, D1, ROUTER], [Drain(name="p9", reason=TOO_MANY)]),
    ("of an older make and still starting: it leaves at once",
     wanted_of(1, 1, max_surge=2), [OLD_STARTING_P, D1, ROUTER],
     [start(P), Drain(name="p8", reason=OLD)]),
    ("a role moves", wanted_of(1, 2), [P1, P2, D1, ROUTER], [ChangeRole(name="p2", role=D)]),
    ("roles swap makes",
     wanted_of(1, 1, makes="BAA"), [P1, member("d9", D, "B"), ROUTER],
     [ChangeRole(name="d9", role=P), ChangeRole(name="p1", role=D)]),
    ("a move and a start", wanted_of(1, 3), [P1, P2, D1, ROUTER],
     [ChangeRole(name="p2", role=D), start(D)]),
    ("a move and a drain", wanted_of(1, 2), [P1, P2, P3, D1, ROUTER],
     [ChangeRole(name="p3", role=D), Drain(name="p2", reason=TOO_MANY)]),
    ("one that drains takes no role", wanted_of(1, 2),
     [P1, member("p2", P, "A", DRAINING), D1, ROUTER], [start(D)]),
    ("disaggregated to mixed: no load", wanted_of(0, 0, 2), [P1, D1, ROUTER],
     [ChangeRole(name="p1", role=M), ChangeRole(name="d1", role=M)]),
    ("mixed to disaggregated: no load", wanted_of(1, 1), [M1, M2, ROUTER],
     [ChangeRole(name="m2", role=P), ChangeRole(name="m1", role=D)]),
    ("a pool of none: its members leave once others serve", wanted_of(1, 1),
     [P1, D1, M1, M2, ROUTER],
     [Drain(name="m2", reason=TOO_MANY), Drain(name="m1", reason=TOO_MANY)]),
    ("a new make: as many at once as the surge allows", wanted_of(2, 2, makes="BBB", max_surge=2),
     [P1, P2, D1, D2, ROUTER], [start(P, "B"), start(D, "B")]),
    ("a new make, no surge: one leaves first", wanted_of(1, 1, makes="BBB", max_surge=0),
     [P1, D1, ROUTER], [Drain(name="p1", reason=OLD)]),
    ("no role is left empty for another that is short", wanted_of(1, 1, 1, makes="ABA"),
     [P1, D1, ROUTER], [start(D, "B"), start(M)]),
    ("once its next one serves, it may go elsewhere", wanted_of(1, 1, 1, makes="ABA"),
     [P1, D1, member("d9", D, "B"), ROUTER], [ChangeRole(name="d1", role=M)]),
    ("routers too many", wanted_of(1, 1), [P1, D1, ROUTER, member("router-1", R, "R")],
     [Drain(name="router-1", reason=TOO_MANY)]),
    ("a router too few", wanted_of(1, 1, routers=2), [P1, D1, ROUTER],
     [start(R, "R", "router-1")]),
    ("an older router waits for the instances", wanted_of(1, 2, router_make="S"),
     [P1, D1, ROUTER], [start(D)]),
    ("also for those that start", wanted_of(1, 1, router_make="S"),
     [member("p1", P, "A", STARTING), D1, ROUTER], []),
    ("then it leaves", wanted_of(1, 1, router_make="S"), [P1, D1, ROUTER],
     [Drain(name="router-0", reason=OLD)]),
    ("of two older routers, one", wanted_of(1, 1, routers=2, router_make="S"),
     [P1, D1, ROUTER, member("router-1", R, "R")], [Drain(name="router-0", reason=OLD)]),
    ("the second when the first is back", wanted_of(1, 1, routers=2, router_make="S"),
     [P1, D1, member("router-0", R, "S", STARTING), member("router-1", R, "R")], []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "seen", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_decide(wanted: Wanted, seen: Sequence[Seen], want: list[Action]) -> None:
    assert list(decide(wanted, seen)) == want


LACKS: list[tuple[str, Wanted, Sequence[Seen], list[str]]] = [
    ("as planned", wanted_of(1, 1), [P1, D1, ROUTER], []),
    (
        "one starts",
        wanted_of(2, 1),
        [P1, STARTING_P, D1, ROUTER],
        ["prefill: 1 of 2 serve", "prefill: 1 starting"],
    ),
    (
        "of another make",
        wanted_of(1, 1, makes="BAA"),
        [P1, D1, ROUTER],
        ["prefill: 0 of 1 serve", "prefill: 1 to be replaced"],
    ),
    ("too many", wanted_of(1, 1), [P1, P2, D1, ROUTER], ["prefill: 2 of 1 serve"]),
    (
        "one that is not to be is leaving",
        wanted_of(1, 1),
        [P1, D1, member("m1", M, "A", DRAINING), ROUTER],
        ["mixed: 1 draining"],
    ),
    ("no router", wanted_of(1, 1), [P1, D1], ["router: 0 of 1 serve"]),
]


@pytest.mark.parametrize(
    ("wanted", "seen", "want"), [c[1:] for c in LACKS], ids=[c[0] for c in LACKS]
)
def test_lacks(wanted: Wanted, seen: Sequence[Seen], want: list[str]) -> None:
    assert list(lacks(wanted, seen)) == want


def told(world: World) -> list[str]:
    """A whole way to a plan, one word per step."""
    steps = []
    for actions in world.settle():
        words = []
        for action in actions:
            match action:
                case Start():
                    words.append(f"+{action.role[0]}{action.make}")
                case Drain():
                    words.append(f"-{world.members[action.name].role[0]}")
                case ChangeRole():
                    words.append(f">{action.role[0]}")
        steps.append(" ".join(words))
    return steps


def test_a_rolling_update_goes_pool_by_pool_and_ends_with_the_routers() -> None:
    world = settled(wanted_of(2, 2, routers=2))
    world.wanted = wanted_of(2, 2, routers=2, makes="BBB", router_make="S")
    one_router = ["-r", "+rS"]
    rounds = ["+pB", "-p", "+dB", "-d", "+pB", "-p", "+dB", "-d"]
    # A step of waiting between a start and the drain that it allows is no step of ours.
    assert [step for step in told(world) if step] == [*rounds, *one_router, *one_router]
    assert {each.name for each in world.seen if each.is_router} == {router_name(0), router_name(1)}


def test_without_a_surge_the_old_one_leaves_first() -> None:
    world = settled(wanted_of(1, 1, max_surge=0))
    world.wanted = wanted_of(1, 1, makes="BBB", max_surge=0)
    assert [step for step in told(world) if step] == ["-p", "+pB", "-d", "+dB"]


def test_a_plan_taken_back_ends_what_it_began() -> None:
    before = wanted_of(1, 1)
    world = settled(before)
    names = set(world.members)
    world.wanted = wanted_of(1, 1, makes="BBB")
    world.act()
    assert len(world.members) == len(names) + 1
    world.wanted = before
    assert [step for step in told(world) if step] == ["-p"]
    assert set(world.members) == names
