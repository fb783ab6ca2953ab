"""Laws of `decide`, whatever is planned, in whatever order, and whoever dies."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.controller.decide import POOLS, Action, ChangeRole, Drain, Start, Wanted, decide
from tests.deploy.controller.world import World, settled, wanted_of


@dataclass(frozen=True, slots=True)
class NewPlan:
    """From now on this is wanted."""

    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Die:
    """The one at this place, counted around."""

    index: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One step; whoever has a bit here gets further."""

    bits: int


Happening = NewPlan | Die | Pass

SIZES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 3)),
)
"""Prefill and decode, or mixed ones, as a plan needs."""


@st.composite
def wanteds(draw: st.DrawFn, *, makes: str = "AB", least_surge: int = 0) -> Wanted:
    """Any plan of few instances, few makes."""
    prefill, decode_, mixed = draw(SIZES)
    return wanted_of(
        prefill,
        decode_,
        mixed,
        makes=draw(st.text(makes, min_size=3, max_size=3)),
        routers=draw(st.integers(1, 3)),
        router_make=draw(st.sampled_from("RS")),
        max_surge=draw(st.integers(least_surge, 2)),
    )


HAPPENINGS = st.lists(
    st.one_of(
        wanteds().map(NewPlan),
        st.integers(0, 20).map(Die),
        st.integers(0, 2**12 - 1).map(Pass),
        st.just(Pass(2**12 - 1)),
    ),
    max_size=30,
)
STORIES = st.tuples(wanteds(), HAPPENINGS)


def play(story: tuple[Wanted, list[Happening]]) -> World:
    """All laws that hold at every moment are looked at on the way."""
    first, happenings = story
    world = World(first)
    for happening in happenings:
        match happening:
            case NewPlan():
                world.wanted = happening.wanted
            case Die():
                world.die(happening.index)
            case Pass():
                bits = happening.bits
                world.pass_time(lambda index, bits=bits: bool(bits >> index % 12 & 1))  # type: ignore[misc]
        world.act(look)
    return world


def look(world: World, actions: tuple[Action, ...]) -> None:
    """Before the actions are done."""
    after = world.after(actions)
    never_too_many(world, after)
    never_too_few(world, after, actions)
    routers_one_at_a_time_and_last(world, after, actions)
    if world.is_settled:
        assert actions == ()


def never_too_many(before: World, after: World) -> None:
    limit = before.wanted.num_instances + before.wanted.max_surge
    assert len(after.instances) <= max(limit, len(before.instances))


def never_too_few(before: World, after: World, actions: tuple[Action, ...]) -> None:
    """Whoever leaves, or leaves its role, leaves enough behind."""
    if before.wanted.max_surge == 0:
        return
    leaving = [before.members[a.name] for a in actions if isinstance(a, Drain | ChangeRole)]
    for each in leaving:
        if each.serves and not each.is_router:
            assert after.num_serving(each.role) >= before.wanted.pools[each.role].num
    drained = {a.name for a in actions if isinstance(a, Drain)}
    if any(each.serves and not each.is_router and each.name in drained for each in leaving):
        assert after.num_serving() >= before.wanted.num_instances


def routers_one_at_a_time_and_last(
    before: World, after: World, actions: tuple[Action, ...]
) -> None:
    wanted_names = {f"router-{index}" for index in range(before.wanted.routers.num)}
    replaced = [a.name for a in actions if isinstance(a, Drain) and a.name in wanted_names]
    if replaced:
        assert len(replaced) == 1
        assert before.members[replaced[0]].make != before.wanted.routers.make
        assert all(each.serves for each in before.seen)
        # A change of role takes no longer than a call.
        assert all(after.num_good(role) == pool.num for role, pool in after.wanted.pools.items())
        assert len(after.instances) == after.wanted.num_instances


@given(STORIES)
@settings(max_examples=500)
def test_once_nobody_dies_it_becomes_as_planned_and_stays(
    story: tuple[Wanted, list[Happening]],
) -> None:
    world = play(story)
    for _ in world.settle(look):
        pass
    assert decide(world.wanted, world.seen) == ()
    names = {each.name for each in world.seen if each.is_router}
    assert names == {f"router-{index}" for index in range(world.wanted.routers.num)}


@given(st.integers(0, 2), SIZES, st.data())
def test_a_plan_that_only_moves_loads_nothing(
    max_surge: int, sizes: tuple[int, int, int], data: st.DataObject
) -> None:
    total = sum(sizes)
    prefill = data.draw(st.integers(0, total))
    decode_ = data.draw(st.integers(0, total - prefill))
    world = settled(wanted_of(*sizes, max_surge=max_surge))
    before = set(world.members)
    world.wanted = wanted_of(prefill, decode_, total - prefill - decode_, max_surge=max_surge)
    actions = world.act()
    assert all(isinstance(action, ChangeRole) for action in actions)
    moved = sum(max(0, a - b) for a, b in zip(sizes, nums(world.wanted), strict=True))
    assert len(actions) == moved
    assert world.is_settled
    assert set(world.members) == before


@given(wanteds(makes="A", least_surge=0), st.data())
def test_of_a_new_make_all_pools_come_up_together(wanted: Wanted, data: st.DataObject) -> None:
    world = settled(wanted)
    world.wanted = wanted_of(
        *nums(wanted), makes="BBB", routers=wanted.routers.num, max_surge=wanted.max_surge
    )
    bits = data.draw(st.lists(st.integers(0, 2**12 - 1), max_size=20))
    for each in bits:
        world.act(look)
        roles = [role for role in POOLS if world.wanted.pools[role].num]
        for role in roles:
            ahead = (world.num_good(role) - 1) / world.wanted.pools[role].num
            assert all(ahead <= world.share_good(other) for other in roles)
        world.pass_time(lambda index, each=each: bool(each >> index % 12 & 1))  # type: ignore[misc]
    for _ in world.settle(look):
        pass
    assert {m.make for m in world.instances} == {"B"}


def nums(wanted: Wanted) -> list[int]:
    """Of prefill, decode and mixed."""
    return [wanted.pools[role].num for role in POOLS]


@given(wanteds(), st.data())
def test_what_is_as_planned_is_left_alone(wanted: Wanted, data: st.DataObject) -> None:
    world = settled(wanted)
    order = data.draw(st.permutations(world.seen))
    assert decide(wanted, order) == ()


@given(wanteds(makes="A", least_surge=1), st.data())
def test_a_death_is_answered_by_one_start(wanted: Wanted, data: st.DataObject) -> None:
    world = settled(wanted)
    victim = data.draw(st.sampled_from(world.seen))
    del world.members[victim.name]
    name = victim.name if victim.is_router else ""
    assert decide(wanted, world.seen) == (Start(role=victim.role, make=victim.make, name=name),)
