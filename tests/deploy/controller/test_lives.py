"""Members that are taken over, and what happens while Ray or a member does not answer."""

import asyncio

import pytest

from core.member import Role
from deploy.controller.hands import Found
from deploy.controller.lives import ADOPT_TIMEOUT_S
from deploy.controller.seen import MemberState
from tests.deploy.controller.stage import Stage, Story, deployed, play

P, D, R = Role.PREFILL, Role.DECODE, Role.ROUTER


def as_planned(stage: Stage) -> None:
    """Nothing but what serves is there."""
    assert not stage.controller.waits_for
    assert stage.hands.processes.keys() == stage.names(serving=True)


# --- taking over ------------------------------------------------------------------------------


async def the_next_controller_disturbs_nobody(first: Stage) -> None:
    async with first.running(deployed(2, 1, routers=2)):
        first.controller.put(deployed(1, 2, routers=2))
        await first.settled()
    before = {m.name: (m.role, m.make, m.host, m.address, m.http_address) for m in first.members}
    stage = first.next_controller()
    async with stage.running():
        await stage.until(lambda: bool(stage.members))
        await stage.settled()
        # With the role that each has by now, not the one that it was started with.
        assert before == {
            m.name: (m.role, m.make, m.host, m.address, m.http_address) for m in stage.members
        }
        assert len(stage.hands.orders) == len(before)
        assert stage.hands.ended_names == []
        # Nor did it find anything new to write down.
        assert stage.kept == []
        assert stage.told[-1] == ": controller of term 7; found 5 members"


async def the_next_controller_ends_what_it_found(first: Stage) -> None:
    async with first.running(deployed(2, 1)):
        pass
    stage = first.next_controller()
    async with stage.running():
        await stage.until(lambda: bool(stage.members))
        stage.controller.put(deployed(1, 1))
        await stage.settled()
        as_planned(stage)
        assert len(stage.names(P)) == 1


async def one_that_does_not_serve_yet_is_taken_over_too(first: Stage) -> None:
    first.hands.holding.add(D)
    async with first.running():
        first.controller.put(deployed())
        await first.until(lambda: len(first.names(serving=True)) == 2)
    stage, began_at_s = first.next_controller(), first.clock.now_s()
    async with stage.running():
        await stage.until(lambda: len(stage.names(serving=True)) == 2)
        assert stage.one(D).state is MemberState.STARTING
        # It holds up the others, but not for long.
        assert stage.clock.now_s() - began_at_s < ADOPT_TIMEOUT_S + 1.0
        stage.hands.release(D)
        await stage.settled()
        assert len(stage.hands.orders) == 3
        as_planned(stage)


async def one_that_has_died_meanwhile_is_replaced(first: Stage) -> None:
    async with first.running(deployed()):
        victim = first.one(P).name
    first.hands.die(victim)
    stage = first.next_controller()
    async with stage.running():
        await stage.until(lambda: victim not in stage.names() and len(stage.names()) == 3)
        await stage.settled()
        as_planned(stage)


async def one_that_does_not_tell_its_role_is_asked_again(first: Stage) -> None:
    async with first.running(deployed()):
        pass
    stage = first.next_controller()
    # A call each for two instances; the address of the router's other door.
    stage.calls.refusing = {"role": 2, "http_address": 1}
    async with stage.running():
        await stage.until(lambda: bool(stage.members))
        await stage.settled()
        as_planned(stage)


async def members_without_a_plan_can_be_ended(stage: Stage) -> None:
    """The registry came back empty, and the disk with the record is gone."""
    stage.hands.put(
        Found(name="instance-a", role=D, make="m", host="a", bundle={"CPU": 1.0})
    ).known.set()
    async with stage.running():
        await stage.until(lambda: bool(stage.names(serving=True)))
        assert stage.controller.waits_for == ("a plan",)
        stage.controller.end(1.0)
        await stage.until(lambda: not stage.hands.processes)


# --- while somebody does not answer -----------------------------------------------------------


def ray_away(call: str, num_times: int = 3) -> Story:
    """A first plan and a death, both while Ray does not answer one kind of call."""

    async def story(stage: Stage) -> None:
        stage.hands.away[call] = num_times
        async with stage.running(deployed(2, 2, routers=2)):
            as_planned(stage)
            stage.hands.away[call] = num_times
            victim = min(stage.names(P))
            stage.hands.die(victim)
            await stage.until(lambda: victim not in stage.names())
            await stage.settled()
            as_planned(stage)
            # At the end of it everybody leaves, whoever does not answer.
            stage.hands.away[call] = num_times
            stage.controller.end(1.0)
            await stage.until(lambda: not stage.members)
            assert stage.hands.processes == {}

    return story


@pytest.mark.parametrize("call", ["found", "hosts", "start", "born", "end"])
def test_while_ray_is_away_nothing_is_lost(call: str) -> None:
    play(ray_away(call))


async def a_drain_refused_while_ray_is_away(stage: Stage) -> None:
    """Whoever can neither be asked nor be ended is ended later."""
    async with stage.running(deployed()):
        victim = stage.one(D).name
        stage.calls.refusing["drain"] = 1
        stage.hands.away["end"] = 2
        stage.controller.drain(victim, 5.0)
        await stage.until(lambda: victim not in stage.names())
        await stage.settled()
        as_planned(stage)


async def a_start_drained_while_ray_is_away(stage: Stage) -> None:
    stage.hands.holding.add(D)
    async with stage.running():
        stage.controller.put(deployed())
        await stage.until(lambda: bool(stage.names(D)))
        victim = stage.one(D).name
        stage.hands.away["end"] = 2
        stage.controller.drain(victim, 5.0)
        await stage.until(lambda: stage.hands.away["end"] == 0)
        stage.hands.release(D)
        await stage.until(lambda: victim not in stage.names())
        await stage.settled()
        as_planned(stage)


async def a_router_that_dies_while_it_is_asked_to_drain(stage: Stage) -> None:
    """The next one has its name, and must not be taken for it."""
    async with stage.running(deployed()):
        gate = stage.calls.gates["drain"] = asyncio.Event()
        old = stage.one(R)
        stage.controller.drain("router-0", 5.0)
        stage.hands.die("router-0")
        await stage.until(lambda: old not in stage.members and not stage.controller.waits_for)
        new = stage.one(R)
        gate.set()
        await stage.until(lambda: any("does not drain" in line for line in stage.told))
        await stage.settled()
        assert stage.one(R) == new
        assert stage.hands.ended_names == []


async def one_dies_while_another_is_asked_to_change_its_role(stage: Stage) -> None:
    """It was to be drained next, and is not there any more."""
    async with stage.running(deployed(3, 1)):
        gate = stage.calls.gates["change_role"] = asyncio.Event()
        stage.controller.put(deployed(1, 2))
        await stage.until(lambda: "change_role" in stage.calls.asked)
        await lose(stage, P)
        gate.set()
        await stage.settled()
        as_planned(stage)


async def one_dies_while_the_hosts_are_looked_at(stage: Stage) -> None:
    """The same: it was to be drained as soon as another had been started."""
    async with stage.running(deployed(2, 1, more="max_surge = 2")):
        gate = stage.hands.gates["hosts"] = asyncio.Event()
        num_asked = stage.hands.asked.count("hosts")
        stage.controller.put(deployed(1, 1, more="max_surge = 2", decode_tp=2))
        await stage.until(lambda: stage.hands.asked.count("hosts") > num_asked)
        await lose(stage, P)
        gate.set()
        await stage.settled()
        as_planned(stage)


async def lose(stage: Stage, role: Role) -> None:
    """All of a role at once."""
    victims = stage.names(role)
    for name in victims:
        stage.hands.die(name)
    await stage.until(lambda: not victims & stage.names())


STORIES: list[Story] = [
    the_next_controller_disturbs_nobody,
    the_next_controller_ends_what_it_found,
    one_that_does_not_serve_yet_is_taken_over_too,
    one_that_has_died_meanwhile_is_replaced,
    one_that_does_not_tell_its_role_is_asked_again,
    members_without_a_plan_can_be_ended,
    a_drain_refused_while_ray_is_away,
    a_start_drained_while_ray_is_away,
    a_router_that_dies_while_it_is_asked_to_drain,
    one_dies_while_another_is_asked_to_change_its_role,
    one_dies_while_the_hosts_are_looked_at,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_story(story: Story) -> None:
    play(story)
