"""An event loop on a clock that moves at once to whatever is waited for: exact, and fast."""

import asyncio
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from bench.load.offer import Arrival, Ask
from bench.load.outcome import Event
from core.clock import ManualClock
from core.errors import BatonError

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every task waits, and for nothing that a clock brings"
        self._clock.advance(max(0.0, timeout))
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__(_Selector(clock))
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now_s()


def run_virtually(work: Callable[[ManualClock], Coroutine[Any, Any, T]]) -> T:
    """What `work` returns; its sleeps and timeouts take no time."""
    clock = ManualClock(1000.0)
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(work(clock))


@dataclass
class Scripted:
    """A target whose answers come by plan; notes what is asked of it."""

    clock: ManualClock
    script: Sequence[tuple[float, Event]] = ()
    """Seconds after the request, and what comes then."""
    error: BatonError | None = None
    """Raised after the script."""
    prepare_s: float = 0.0
    """What the load generator's own work takes before each request."""
    asked_at_s: list[float] = field(default_factory=list)
    num_closed: int = 0

    def prepare(self, _: Arrival) -> Ask:
        self.clock.advance(self.prepare_s)
        return partial(self._ask)

    async def _ask(self) -> AsyncGenerator[Event, None]:
        asked_at_s = self.clock.now_s()
        self.asked_at_s.append(asked_at_s - 1000.0)
        try:
            for after_s, event in self.script:
                await asyncio.sleep(asked_at_s + after_s - self.clock.now_s())
                yield event
            if self.error is not None:
                raise self.error
        finally:
            self.num_closed += 1


def arrivals_at(*times_s: float) -> list[Arrival]:
    """One request each, of three prompt tokens and at most four output tokens."""
    return [Arrival(at_s=at_s, token_ids=(1, 2, 3), max_tokens=4) for at_s in times_s]
