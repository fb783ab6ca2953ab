"""The one step loop: both phases' work in one batch, computed in a thread of its own."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class StepLoop:
    """Runs steps while there is work; sleeps on an event while there is none, never polls."""

    def __init__(
        self,
        runner: StepRunner,
        phases: Sequence[Phase],
        *,
        holds: StepHolds,
        clock: Clock,
        lag: LagMonitor,
        work: asyncio.Event,
        on_turn: Callable[[], None],
    ) -> None:
        """`work` is set when there may be something to schedule; `on_turn` is told of each look."""
        self._runner = runner
        self._phases = phases
        self._holds = holds
        self._clock = clock
        self._lag = lag
        self._work = work
        self._on_turn = on_turn
        self.num_steps = 0
        """Returned since the start."""
        self.running_since_s: float | None = None
        """When the running step began; None between steps."""

    @property
    def is_running(self) -> bool:
        """A step is being computed."""
        return self.running_since_s is not None

    async def run(self) -> None:
        """Step until cancelled. An exception of a step ends the loop, and so the process."""
        # Not the loop's default executor: nothing may queue before a step.
        with ThreadPoolExecutor(1, thread_name_prefix="step") as executor:
            while True:
                # Cleared before asking: whatever comes meanwhile asks again.
                self._work.clear()
                works = self._schedule()
                self._on_turn()
                if any(work.entries for work in works):
                    await self._step(works, executor)
                else:
                    await self._work.wait()

    def _schedule(self) -> list[PhaseWork]:
        works: list[PhaseWork] = []
        num_entries = 0
        for phase in self._phases:
            work = phase.schedule(num_entries)
            num_entries += len(work.entries)
            works.append(work)
        return works

    async def _step(self, works: Sequence[PhaseWork], executor: ThreadPoolExecutor) -> None:
        batch = [entry for work in works for entry in work.entries]
        loop = asyncio.get_running_loop()
        self._lag.step_begins()
        self._holds.step_begins()
        self.running_since_s = began_at_s = self._clock.now_s()
        try:
            result = await loop.run_in_executor(
                executor, self._runner.step, batch, self._on_layer(works, loop)
            )
        except Exception:
            logger.critical("step failed, keys=%s", [entry.key for entry in batch])
            raise
        self.num_steps += 1
        self.running_since_s = None
        self._lag.step_returned()
        self._absorb(works, result, began_at_s)
        # After absorbing: what the step proves useless is freed with what was let go before.
        self._holds.step_returned()

    def _absorb(self, works: Sequence[PhaseWork], result: StepResult, began_at_s: float) -> None:
        ended_at_s = self._clock.now_s()
        start = 0
        for phase, work in zip(self._phases, works, strict=True):
            token_ids = result.token_ids[start : start + len(work.entries)]
            start += len(work.entries)
            if work.entries:
                phase.absorb(
                    StepOutcome(
                        token_ids=token_ids, began_at_s=began_at_s, ended_at_s=ended_at_s
                    )
                )

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
        for phase in self._phases:
            phase.layer_written(layer)
