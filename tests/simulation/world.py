"""A virtual clock, a seeded queue of events, and everybody who takes part."""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from core.clock import ManualClock
from core.errors import BatonError
from decode_worker.reservations import Reservations
from kv_transfer.shelf import Shelf
from kv_transfer.sink import Sink
from kv_transfer.source import Reader, Source
from tests.simulation.checks import Checks, as_rule, check_books
from tests.simulation.fetching import Fetching
from tests.simulation.leaves import Gate, Leave
from tests.simulation.loop import Loop
from tests.simulation.profile import TICK_S, draw
from tests.simulation.rogue import Rogue
from tests.simulation.slots import InSlot, Slots
from tests.simulation.watch import WatchedAllocator

Action = Callable[..., bool | None]
"""False when nothing happened: a timer that is out of date."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is under test; mutants take the place of one."""

    source: type[Source] = Source
    reader: type[Reader] = Reader
    sink: type[Sink] = Sink
    allocator: type[WatchedAllocator] = WatchedAllocator
    reservations: type[Reservations] = Reservations
    shelf: type[Shelf] = Shelf
    gate: type[Gate] = Gate
    slots: type[Slots] = Slots
    in_slot: type[InSlot] = InSlot
    fetching: type[Fetching] = Fetching


class World:
    """One seed's schedule."""

    def __init__(self, seed: int, parts: Parts, trace: list[str] | None = None) -> None:
        self.rng = Random(seed)
        self.random = self.rng.random
        self.parts = parts
        self.clock = ManualClock()
        self.checks = Checks()
        self.profile = draw(self.rng)
        self.rogue = Rogue(self, self.profile)
        self.changed: set[WatchedAllocator] = set()
        """Allocators whose books have moved since the last check."""
        self.loop = Loop()
        self.leaves: list[Leave] = []
        """All that were given."""
        self.seen: Counter[str] = Counter()
        """How often what only some schedules show has happened."""
        self.num_events = 0
        self._trace = trace
        self._queue: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._num_queued = 0

    @property
    def now_s(self) -> float:
        """The moment of the event under way."""
        return self.clock.now_s()

    def ticks(self, low: int, high: int) -> int:
        """A random duration, low ≤ n < high."""
        return low + int(self.random() * (high - low))

    def copy_ticks(self) -> int:
        """How long a copy thread takes: a few are far slower than the rest."""
        return self.ticks(40, 200) if self.random() < 0.05 else self.ticks(1, 24)

    def after(self, num_ticks: int, action: Action, *args: Any) -> None:
        """Do something later."""
        self._num_queued += 1
        at_s = self.clock.now_s() + num_ticks * TICK_S
        heapq.heappush(self._queue, (at_s, self._num_queued, action, args))

    def at(self, at_s: float, action: Action, *args: Any) -> None:
        """Do something at a moment that is not past."""
        self._num_queued += 1
        heapq.heappush(self._queue, (at_s, self._num_queued, action, args))

    def run(self) -> None:
        """Until nothing is left to happen."""
        queue, clock = self._queue, self.clock
        while queue:
            at_s, _, action, args = heapq.heappop(queue)
            clock.advance(at_s - clock.now_s())
            if self._trace is not None:
                self._trace.append(_line(at_s, action, args))
            try:
                happened = action(*args)
                self.loop.run_ready()
            except BatonError as error:
                raise as_rule(error) from error
            if happened is not False:
                self.num_events += 1
            if self.changed:
                for allocator in self.changed:
                    check_books(allocator)
                self.changed.clear()


def _line(at_s: float, action: Action, args: tuple[Any, ...]) -> str:
    return f"{at_s / TICK_S:7.0f} {_show(action)} {' '.join(_show(a) for a in args)}"


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return f"({' '.join(_show(v) for v in value)})"
    if isinstance(value, Source):
        return f"{value.handoff_id}:{value.state}"
    owner = getattr(value, "__self__", None)
    if owner is not None:
        return f"{owner}.{getattr(value, '__name__', '?')}"
    return str(value)[:80]
