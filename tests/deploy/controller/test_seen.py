"""What becomes of a member, event by event."""

from typing import Any

import pytest

from core.errors import IllegalTransition
from core.member import Role
from core.tables import Ruling
from deploy.controller.seen import MEMBER_TABLE, MemberEvent, MemberState, Seen
from tests.deploy.controller.world import member

PAIRS = list(MEMBER_TABLE.pairs())


def of(state: MemberState) -> Seen:
    return member("instance-a", Role.DECODE, "make", state, since_s=1.0)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=[f"{s}, {e}" for s, e in PAIRS])
def test_a_member_keeps_the_table(state: MemberState, event: MemberEvent) -> None:
    entry: Any = MEMBER_TABLE.look(state, event)
    before = of(state)
    if entry is Ruling.BUG:
        with pytest.raises(IllegalTransition):
            before.after(event, 2.0)
    elif entry is Ruling.DROP:
        # Nor does its time in that state begin anew.
        assert before.after(event, 2.0) is before
    else:
        after = before.after(event, 2.0)
        assert (after.state, after.since_s, after.name) == (entry, 2.0, before.name)


WAYS = [
    ("a full life", [MemberEvent.READY, MemberEvent.DRAIN, MemberEvent.ENDED, MemberEvent.CLEARED]),
    ("drained before it served", [MemberEvent.DRAIN, MemberEvent.READY, MemberEvent.CLEARED]),
    ("never served", [MemberEvent.ENDED, MemberEvent.CLEARED]),
    ("died, and was asked to leave", [MemberEvent.ENDED, MemberEvent.DRAIN, MemberEvent.CLEARED]),
]


@pytest.mark.parametrize("events", [c[1] for c in WAYS], ids=[c[0] for c in WAYS])
def test_every_way_ends(events: list[MemberEvent]) -> None:
    each = of(MemberState.STARTING)
    for event in events:
        each = each.after(event, 0.0)
    assert each.state is MemberState.GONE


LIVE = [
    # state, lives, serves
    (MemberState.STARTING, True, False),
    (MemberState.SERVING, True, True),
    (MemberState.DRAINING, False, False),
    (MemberState.LOST, False, False),
    (MemberState.GONE, False, False),
]


@pytest.mark.parametrize(("state", "lives", "serves"), LIVE)
def test_lives_and_serves(state: MemberState, lives: bool, serves: bool) -> None:
    assert (of(state).is_live, of(state).serves) == (lives, serves)


def test_a_router_is_no_instance() -> None:
    assert [role for role in Role if member("x", role, "m").is_router] == [Role.ROUTER]
