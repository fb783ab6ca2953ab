"""The one step loop: both phases' work in one batch, computed in a thread of its own."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from core.clock import Clock
from engine.batch import BatchEntry, StepResult
from worker_host.holds import StepHolds
from worker_host.lag import LagMonitor
from worker_host.phase import Phase, PhaseWork, StepOutcome

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What computes a step; blocks its thread."""

    def step(
        self, entries: Sequence[BatchEntry], on_layer: Callable[[int], None] | None = None
    ) -> StepResult: ...


@dataclass(slots=True, kw_only=True)
class StepLoop:
    """Runs steps while there is work; sleeps on an event while there is none, never polls."""

    runner: StepRunner
    phases: Sequence[Phase]
    """In order of precedence."""
    executor: Executor
    """One thread of its own: nothing may queue before a step."""
    holds: StepHolds
    clock: Clock
    lag: LagMonitor
    work: asyncio.Event
    """Set when there may be something to schedule."""
    on_turn: Callable[[], None]
    """Called each time the loop has looked for work."""
    num_steps: int = 0
    """Returned since the start."""
    running_since_s: float | None = None
    """When the running step began; None between steps."""

    @property
    def is_running(self) -> bool:
        """A step is being computed."""
        return self.running_since_s is not None

    async def run(self) -> None:
        """Step until cancelled. An exception of a step ends the loop, and so the process."""
        while True:
            # Cleared before asking: whatever comes meanwhile asks again.
            self.work.clear()
            works = self._schedule()
            self.on_turn()
            if any(work.entries for work in works):
                await self._step(works)
            else:
                await self.work.wait()

    def _schedule(self) -> list[PhaseWork]:
        works: list[PhaseWork] = []
        num_entries = 0
        for phase in self.phases:
            work = phase.schedule(num_entries)
            num_entries += len(work.entries)
            works.append(work)
        return works

    async def _step(self, works: Sequence[PhaseWork]) -> None:
        batch = [entry for work in works for entry in work.entries]
        loop = asyncio.get_running_loop()
        self.lag.step_begins()
        self.holds.step_begins()
        self.running_since_s = began_at_s = self.clock.now_s()
        try:
            result = await loop.run_in_executor(
                self.executor, self.runner.step, batch, self._on_layer(works, loop)
            )
        except Exception:
            logger.critical("step failed, keys=%s", [entry.key for entry in batch])
            raise
        self.num_steps += 1
        self.running_since_s = None
        self.lag.step_returned()
        self._absorb(works, result, began_at_s)
        # After absorbing: what the step proves useless is freed with what was let go before.
        self.holds.step_returned()

    def _absorb(self, works: Sequence[PhaseWork], result: StepResult, began_at_s: float) -> None:
        ended_at_s = self.clock.now_s()
        start = 0
        for phase, work in zip(self.phases, works, strict=True):
            rows = slice(start, start + len(work.entries))
            start = rows.stop
            if work.entries:
                outcome = StepOutcome(
                    token_ids=result.token_ids[rows],
                    logprobs=result.logprobs[rows],
                    began_at_s=began_at_s,
                    ended_at_s=ended_at_s,
                )
                phase.absorb(outcome)

    def _on_layer(
        self, works: Sequence[PhaseWork], loop: asyncio.AbstractEventLoop
    ) -> Callable[[int], None] | None:
        """Called in the step's thread; wakes the loop only for layers that somebody waits for."""
        wanted = frozenset().union(*(work.layers for work in works))
        if not wanted:
            return None

        def on_layer(layer: int) -> None:
            if layer in wanted:
                loop.call_soon_threadsafe(self._layer_written, layer)

        return on_layer

    def _layer_written(self, layer: int) -> None:
        for phase in self.phases:
            phase.layer_written(layer)
