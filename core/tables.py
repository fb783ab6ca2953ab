"""Transition tables: every (state, event) pair is decided, in one place, without IO."""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Generic, TypeVar

from core.errors import IllegalTransition, WrongState

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class Ruling(Enum):
    """What happens to an event that does not change the state."""

    DROP = "drop"
    """Late, repeated or reordered: absorbed without effect."""
    REFUSE = "refuse"
    """The sender is told: WrongState."""
    BUG = "bug"
    """Only our own code can cause it: IllegalTransition."""


class Table(Generic[S, E]):
    """A total function from (state, event) to the next state or a ruling."""

    def __init__(
        self, name: str, states: type[S], events: type[E], rows: Mapping[S, Mapping[E, S | Ruling]]
    ) -> None:
        self.name = name
        self.states = states
        self.events = events
        self._next = {(s, e): to for s, row in rows.items() for e, to in row.items()}
        undecided = [f"({s.value}, {e.value})" for s, e in self.pairs() if (s, e) not in self._next]
        if undecided:
            raise IllegalTransition(f"{name}: undecided pairs: {', '.join(undecided)}")

    def pairs(self) -> Iterator[tuple[S, E]]:
        """All (state, event) pairs."""
        return ((s, e) for s in self.states for e in self.events)

    def look(self, state: S, event: E) -> S | Ruling:
        """The entry of one pair."""
        return self._next[state, event]

    def advance(self, state: S, event: E) -> S | None:
        """The next state; None when the event is to be dropped.

        Raises WrongState when the sender is to be told, IllegalTransition on a bug of ours.
        """
        entry = self._next[state, event]
        if not isinstance(entry, Ruling):
            return entry
        if entry is Ruling.REFUSE:
            raise WrongState(f"{self.name}: {event.value} is refused while {state.value}")
        if entry is Ruling.BUG:
            raise IllegalTransition(f"{self.name}: {event.value} cannot happen while {state.value}")
        return None
