"""What a table does with every pair, for all tables there are."""

from enum import Enum
from typing import Any

import pytest

from core.errors import IllegalTransition, WrongState
from core.handoff import SINK, SOURCE, SinkEvent, SinkState, SourceEvent, SourceState
from core.lifecycle import LIFECYCLE, TERMINAL, Event, State
from core.tables import Ruling, Table

TABLES: list[Table[Any, Any]] = [LIFECYCLE, SOURCE, SINK]
NAMES = [table.name for table in TABLES]
PAIRS = [(table, s, e) for table in TABLES for s, e in table.pairs()]


class Light(Enum):
    """A small table's states."""

    RED = "red"
    GREEN = "green"


class Tick(Enum):
    """Its events."""

    TICK = "tick"
    RESET = "reset"


def test_an_undecided_pair_is_a_bug_found_at_import() -> None:
    rows = {Light.RED: {Tick.TICK: Light.GREEN}, Light.GREEN: {Tick.TICK: Light.RED}}
    with pytest.raises(IllegalTransition, match=r"undecided pairs: \(red, reset\), \(green, reset"):
        Table("light", Light, Tick, rows)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_every_pair_is_decided(table: Table[Any, Any]) -> None:
    for pair in table.pairs():
        assert isinstance(table.look(*pair), (table.states, Ruling))


@pytest.mark.parametrize(
    ("table", "state", "event"), PAIRS, ids=[f"{t.name}: {s}, {e}" for t, s, e in PAIRS]
)
def test_a_table_keeps_its_word(table: Table[Any, Any], state: Enum, event: Enum) -> None:
    entry = table.look(state, event)
    if entry is Ruling.BUG:
        with pytest.raises(IllegalTransition, match=f"{event.value} cannot happen"):
            table.advance(state, event)
    elif entry is Ruling.REFUSE:
        with pytest.raises(WrongState, match=f"{event.value} is refused"):
            table.advance(state, event)
    elif entry is Ruling.DROP:
        assert table.advance(state, event) is None
    else:
        assert table.advance(state, event) is entry


# table, where it begins, where it ends
ENDS = [
    (LIFECYCLE, State.QUEUED, TERMINAL),
    (SOURCE, SourceState.AWAITED, frozenset({SourceState.ENDED})),
    (SINK, SinkState.WAITING, frozenset({SinkState.ENDED})),
]
IDS = ["request", "source", "sink"]


def reached_from(table: Table[Any, Any], start: Enum) -> set[Enum]:
    """All states that some events lead to from `start`."""
    reached, todo = {start}, [start]
    while todo:
        state = todo.pop()
        for event in table.events:
            entry = table.look(state, event)
            if not isinstance(entry, Ruling) and entry not in reached:
                reached.add(entry)
                todo.append(entry)
    return reached


@pytest.mark.parametrize(("table", "start", "ends"), ENDS, ids=IDS)
def test_every_state_is_reachable(
    table: Table[Any, Any], start: Enum, ends: frozenset[Enum]
) -> None:
    assert reached_from(table, start) == {state for state, _ in table.pairs()}


@pytest.mark.parametrize(("table", "start", "ends"), ENDS, ids=IDS)
def test_an_end_is_for_ever(table: Table[Any, Any], start: Enum, ends: frozenset[Enum]) -> None:
    for state in ends:
        assert all(isinstance(table.look(state, event), Ruling) for event in table.events)


@pytest.mark.parametrize(("table", "start", "ends"), ENDS, ids=IDS)
def test_every_state_can_end(table: Table[Any, Any], start: Enum, ends: frozenset[Enum]) -> None:
    for state in table.states:
        assert reached_from(table, state) & ends


# What ends it in one step, from every state that is not an end (law 4: every request ends).
ALWAYS = [
    (LIFECYCLE, Event.CANCELLED, State.CANCELLED),
    (LIFECYCLE, Event.DEADLINE, State.FAILED),
    (LIFECYCLE, Event.REFUSED, State.FAILED),
    (LIFECYCLE, Event.STOPPED, State.FINISHED),
    (SOURCE, SourceEvent.ABORT, SourceState.ENDED),
    (SINK, SinkEvent.STOP, SinkState.ENDED),
]


@pytest.mark.parametrize(("table", "event", "end"), ALWAYS, ids=[str(e) for _, e, _ in ALWAYS])
def test_these_always_end_it(table: Table[Any, Any], event: Enum, end: Enum) -> None:
    ends = TERMINAL if table is LIFECYCLE else {end}
    for state in table.states:
        if state not in ends:
            assert table.look(state, event) is end


def test_once_over_a_request_drops_everything() -> None:
    for state in TERMINAL:
        assert {LIFECYCLE.look(state, event) for event in Event} == {Ruling.DROP}


def test_commit_and_retarget_exclude_each_other() -> None:
    assert SINK.look(SinkState.COMMITTED, SinkEvent.RETARGET) is Ruling.REFUSE
    into_commit = [p for p in SINK.pairs() if SINK.look(*p) is SinkState.COMMITTED]
    assert into_commit == [(SinkState.RECEIVING, SinkEvent.COMPLETE)]


def test_only_a_computed_prompt_can_be_committed() -> None:
    for state in (SourceState.AWAITED, SourceState.QUEUED, SourceState.COMPUTING):
        assert SOURCE.look(state, SourceEvent.COMMIT) is Ruling.REFUSE
