"""Stories of a controller: what is asked of it, what happens to its members, what it does."""

import pytest

from core.errors import WrongState
from core.member import Role
from deploy.controller.controller import LOOK_AGAIN_S
from deploy.controller.fit import DoesNotFit
from deploy.controller.lives import FORCE_EXTRA_S
from deploy.controller.roster import UnknownMember
from deploy.controller.seen import MemberState
from tests.deploy.controller.stage import Stage, Story, deployed, play

P, D, R = Role.PREFILL, Role.DECODE, Role.ROUTER


async def a_first_plan(stage: Stage) -> None:
    assert stage.controller.waits_for == ("a plan",)
    async with stage.running():
        assert stage.controller.put(deployed(2, 2, routers=2)) == 1
        assert stage.controller.waits_for
        await stage.settled()
        hosts = {role: sorted(m.host for m in stage.members if m.role is role) for role in (P, D)}
        # A host that dies takes no pool with it.
        assert hosts == {P: ["a", "b"], D: ["a", "b"]}
        assert stage.names(R) == {"router-0", "router-1"}
        assert all(m.address and m.actor_id and m.serves for m in stage.members)
        assert all(m.http_address for m in stage.members if m.is_router)
        assert stage.kept[-1].doors.keys() == {"router-0", "router-1"}
        assert stage.kept[-1] == stage.controller.record


async def the_same_plan_again(stage: Stage) -> None:
    async with stage.running(deployed()):
        before, num_kept = stage.names(), len(stage.kept)
        assert stage.controller.put(deployed()) == 1
        assert len(stage.kept) == num_kept
        assert stage.controller.put(deployed(2)) == 2
        await stage.settled()
        assert before < stage.names()


async def what_does_not_fit_is_said_before(stage: Stage) -> None:
    async with stage.running(deployed(4, 4)):
        # What is there counts as room: 16 processors.
        await stage.controller.check(deployed(8, 8, model="models/two"))
        with pytest.raises(DoesNotFit, match="1 of 9 prefill instances do not fit"):
            await stage.controller.check(deployed(9, 8))
        assert stage.controller.record is not None
        assert stage.controller.record.edition == 1


async def an_instance_dies(stage: Stage) -> None:
    async with stage.running(deployed(2, 1)):
        before = stage.names()
        victim = min(stage.names(P))
        stage.hands.die(victim)
        await stage.until(lambda: victim not in stage.names())
        await stage.settled()
        assert before - stage.names() == {victim}
        assert len(stage.names()) == len(before)
        assert f"{victim}: lost while serving: killed by signal 9" in stage.told


async def a_host_dies(stage: Stage) -> None:
    async with stage.running(deployed(2, 2)):
        (router,) = (m for m in stage.members if m.is_router)
        stage.hands.lose_host(router.host)
        await stage.until(lambda: not any(m.host == router.host for m in stage.members))
        await stage.settled()
        assert {m.host for m in stage.members} == {"a", "b"} - {router.host}


async def what_cannot_start_is_tried_ever_more_seldom(stage: Stage) -> None:
    stage.hands.failing["models/one"] = "no weights in models/one"
    async with stage.running():
        stage.controller.put(deployed())
        began_at_s = stage.clock.now_s()
        await stage.until(lambda: stage.clock.now_s() > began_at_s + 300.0)
        # Both phases of one make, every minute at last; without any pause it were 300.
        assert 10 <= len(stage.hands.orders) <= 30
        assert any("no weights in models/one" in line for line in stage.controller.waits_for)
        await stage.until(lambda: any("next attempt in" in w for w in stage.controller.waits_for))
        del stage.hands.failing["models/one"]
        await stage.settled()
        assert not any("next attempt" in line for line in stage.controller.waits_for)


async def who_asks_again_asks_for_it_now(stage: Stage) -> None:
    stage.hands.failing["models/one"] = "no weights"
    async with stage.running():
        stage.controller.put(deployed())
        await stage.until(lambda: len(stage.hands.orders) > 20)
        await stage.until(lambda: not stage.names(P))
        num_before, asked_at_s = len(stage.hands.orders), stage.clock.now_s()
        stage.controller.put(deployed())
        await stage.until(lambda: len(stage.hands.orders) > num_before)
        assert stage.clock.now_s() - asked_at_s < 1.0


async def a_new_make_that_cannot_start_leaves_the_old_ones_alone(stage: Stage) -> None:
    async with stage.running(deployed(2, 2, routers=2)):
        before = stage.names()
        doors = {m.name: (m.host, m.http_address) for m in stage.members if m.is_router}
        stage.hands.failing["models/two"] = "no such model"
        stage.controller.put(deployed(2, 2, routers=2, model="models/two"))
        await stage.until(lambda: sum("no such model" in line for line in stage.told) > 5)
        assert stage.names(serving=True) == before
        assert any("no such model" in line for line in stage.controller.waits_for)
        # Back to what was there: nothing has to be started.
        num_orders = len(stage.hands.orders)
        stage.controller.put(deployed(2, 2, routers=2))
        await stage.settled()
        assert stage.names() == before
        assert len(stage.hands.orders) <= num_orders + 1
        assert doors == {m.name: (m.host, m.http_address) for m in stage.members if m.is_router}


async def a_rolling_update(stage: Stage) -> None:
    async with stage.running(deployed(2, 2, routers=2)):
        before = stage.names() - stage.names(R)
        stage.controller.put(deployed(2, 2, routers=2, model="models/two"))
        fewest = {P: 2, D: 2, R: 2}
        most = 0

        def is_done() -> bool:
            nonlocal most
            for role in fewest:
                fewest[role] = min(fewest[role], len(stage.names(role, serving=True)))
            most = max(most, len(stage.names() - stage.names(R)))
            return not stage.controller.waits_for

        await stage.until(is_done)
        assert (fewest, most) == ({P: 2, D: 2, R: 1}, 5)
        assert not before & stage.names()
        kinds = [order.kind for order in stage.hands.orders[6:]]
        assert kinds == ["instance"] * 4 + ["router"] * 2


async def no_room_for_more_than_planned(stage: Stage) -> None:
    """Where the hosts are full, the old one leaves first."""
    async with stage.running(deployed(8, 8)):
        before = stage.names() - stage.names(R)
        stage.controller.put(deployed(8, 8, model="models/two"))
        await stage.settled()
        assert not before & stage.names()


async def a_lack_of_room_is_forgotten_with_its_plan(stage: Stage) -> None:
    async with stage.running(deployed(8, 8)):
        num_asked = stage.hands.asked.count("hosts")
        stage.controller.put(deployed(9, 8))
        await stage.until(lambda: stage.hands.asked.count("hosts") > num_asked + 1)
        stage.hands.cpus["c"] = 2.0
        stage.controller.put(deployed(8, 8, model="models/two"))
        fewest = 16

        def is_done() -> bool:
            nonlocal fewest
            serving = len(stage.names(P, serving=True) | stage.names(D, serving=True))
            fewest = min(fewest, serving)
            return not stage.controller.waits_for

        await stage.until(is_done)
        # There is room by now: the new one comes first.
        assert fewest == 16


async def a_role_changes(stage: Stage) -> None:
    async with stage.running(deployed(2, 1)):
        before = stage.names()
        stage.controller.put(deployed(1, 2))
        await stage.settled()
        assert stage.names() == before
        assert len(stage.hands.orders) == 4
        (name, role, term) = stage.calls.said[-1]
        assert (role, term) == (D, 7)
        assert name in stage.names(D)


async def a_role_change_that_is_refused_is_tried_again(stage: Stage) -> None:
    async with stage.running(deployed(2, 1)):
        stage.calls.refusing["change_role"] = 3
        asked_at_s = stage.clock.now_s()
        stage.controller.put(deployed(1, 2))
        await stage.settled()
        assert len(stage.names(D)) == 2
        # Sooner than it looks anyway.
        assert stage.clock.now_s() - asked_at_s < LOOK_AGAIN_S


async def drained_by_name(stage: Stage) -> None:
    async with stage.running(deployed(1, 1)):
        victim = stage.one(P).name
        stage.controller.drain(victim, 3.0)
        stage.controller.drain(victim, 3.0)
        await stage.until(lambda: victim not in stage.names())
        await stage.settled()
        # Once, with the term; nobody was ended by force.
        assert stage.calls.said == [(victim, 3.0, 7)]
        assert stage.hands.ended_names == []
        assert f"{victim}: has left" in stage.told
        assert not any("lost" in line for line in stage.told)
        with pytest.raises(UnknownMember, match="there are: instance-"):
            stage.controller.drain("instance-zzzzz", 3.0)


async def a_drain_that_is_refused_ends_it_by_force(stage: Stage) -> None:
    async with stage.running(deployed(1, 1)):
        stage.calls.refusing["drain"] = 1
        victim = stage.one(D).name
        stage.controller.drain(victim, 3600.0)
        await stage.until(lambda: victim not in stage.names())
        assert stage.hands.ended_names == [victim]
        await stage.settled()


async def who_never_ends_is_ended(stage: Stage) -> None:
    async with stage.running(deployed(1, 1)):
        stage.calls.stubborn = True
        victim, asked_at_s = stage.one(D).name, stage.clock.now_s()
        stage.controller.drain(victim, 30.0)
        await stage.until(lambda: victim not in stage.names())
        took_s = stage.clock.now_s() - asked_at_s
        assert 30.0 + FORCE_EXTRA_S <= took_s < 30.0 + FORCE_EXTRA_S + 1.0
        assert stage.hands.ended_names == [victim]


async def drained_before_it_serves(stage: Stage) -> None:
    stage.hands.holding.add(D)
    async with stage.running():
        stage.controller.put(deployed(1, 1))
        await stage.until(lambda: bool(stage.names(D)))
        victim = stage.one(D).name
        stage.controller.drain(victim, 3600.0)
        stage.hands.holding.clear()
        await stage.settled()
        assert victim not in stage.names()
        # There was nobody to ask.
        assert stage.calls.said == []


async def the_end(stage: Stage) -> None:
    async with stage.running(deployed(2, 1, routers=2)):
        stage.controller.end(9.0)
        with pytest.raises(WrongState):
            stage.controller.put(deployed(1, 1))
        await stage.until(lambda: not stage.members)
        asked = [(name.split("-")[0], timeout_s) for name, timeout_s, _ in stage.calls.said]
        assert asked == [("router", 9.0)] * 2 + [("instance", 9.0)] * 3
        assert stage.hands.processes == {}


async def the_end_before_anything_serves(stage: Stage) -> None:
    stage.hands.holding |= {P, D}
    async with stage.running():
        stage.controller.put(deployed(2, 2))
        await stage.until(lambda: len(stage.names()) == 5)
        stage.controller.end(9.0)
        await stage.until(lambda: not stage.hands.processes)
        assert stage.members == ()


async def the_end_returns(stage: Stage) -> None:
    stage.controller.end(0.0)
    await stage.controller.run()


async def a_router_comes_back_at_its_door(stage: Stage) -> None:
    async with stage.running(deployed(1, 1, routers=2)):
        before = {m.name: m.http_address for m in stage.members if m.is_router}
        door = stage.controller.record.doors["router-1"] if stage.controller.record else None
        stage.hands.die("router-1")
        await stage.until(lambda: "router-1" not in stage.names(R, serving=True))
        await stage.settled()
        assert before.keys() == stage.names(R)
        assert door is not None
        spec = stage.hands.orders[-1].spec_json
        assert f'"port": {door.port}' in spec
        assert f'"http_port": {door.http_port}' in spec
        assert stage.hands.orders[-1].host == door.host


async def a_router_whose_host_is_gone_comes_back_elsewhere(stage: Stage) -> None:
    async with stage.running(deployed(1, 1)):
        lost = stage.one(R)
        stage.hands.lose_host(lost.host)
        await stage.until(lambda: lost not in stage.members)
        await stage.settled()
        assert stage.one(R).host in {"a", "b"} - {lost.host}


async def one_that_fails_to_start_gives_back_its_place(stage: Stage) -> None:
    stage.hands.failing["models/one"] = "no weights"
    async with stage.running():
        stage.controller.put(deployed())
        await stage.until(lambda: sum("no weights" in line for line in stage.told) > 3)
        stage.controller.put(deployed(model="models/two"))
        await stage.settled()
        assert len(stage.hands.processes) == 3
        assert all(m.state is MemberState.SERVING for m in stage.members)


STORIES: list[Story] = [
    a_first_plan,
    the_same_plan_again,
    what_does_not_fit_is_said_before,
    an_instance_dies,
    a_host_dies,
    what_cannot_start_is_tried_ever_more_seldom,
    who_asks_again_asks_for_it_now,
    a_new_make_that_cannot_start_leaves_the_old_ones_alone,
    a_rolling_update,
    no_room_for_more_than_planned,
    a_lack_of_room_is_forgotten_with_its_plan,
    a_role_changes,
    a_role_change_that_is_refused_is_tried_again,
    drained_by_name,
    a_drain_that_is_refused_ends_it_by_force,
    who_never_ends_is_ended,
    drained_before_it_serves,
    the_end,
    the_end_before_anything_serves,
    the_end_returns,
    a_router_comes_back_at_its_door,
    a_router_whose_host_is_gone_comes_back_elsewhere,
    one_that_fails_to_start_gives_back_its_place,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_story(story: Story) -> None:
    play(story)
