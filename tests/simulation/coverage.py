"""Which (state, event) pairs of the tables a run has visited."""

from collections import Counter
from enum import Enum
from typing import TypeVar

from core import handoff, lifecycle
from core.tables import Table

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class RecordedTable(Table[S, E]):
    """A table that counts what it is asked."""

    def __init__(self, table: Table[S, E]) -> None:
        rows = {s: {e: table.look(s, e) for e in table.events} for s in table.states}
        super().__init__(table.name, table.states, table.events, rows)
        self.visits: Counter[tuple[S, E]] = Counter()

    def advance(self, state: S, event: E) -> S | None:
        """As of any table."""
        self.visits[state, event] += 1
        return super().advance(state, event)


SOURCE = RecordedTable(handoff.SOURCE)
SINK = RecordedTable(handoff.SINK)
LIFECYCLE = RecordedTable(lifecycle.LIFECYCLE)
