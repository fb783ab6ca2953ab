"""One load against one target: first a request to see that it answers; then the figures."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.load.measures import Cpu, Measures, Window, measure
from bench.load.offer import DEFAULT_MAX_IN_FLIGHT, Arrival, LoadGenerator, Target
from bench.load.outcome import Outcome
from bench.load.prompts import Prompts
from bench.load.workload import Workload
from core.clock import MonotonicClock
from core.errors import BatonError, ConfigError
from core.slo import Slo

TICK_S = 1.0
"""Between two lines of progress: rarer than would show in the figures."""
PROBE_TOKENS = 8

Progress = Callable[[str], None]


class ProbeFailed(BatonError):
    """The first request, which is not counted, had no answer: nothing was measured."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How a workload is offered and judged."""

    timeout_s: float = 600.0
    """From sending a request to the end of its answer."""
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    warmup_s: float = 0.0
    """Requests that arrive before this moment are sent and not counted."""
    limits: Slo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """A workload, offered."""

    workload: Workload
    outcomes: Sequence[Outcome]
    """All, in order of arrival."""
    measures: Measures


async def probe(target: Target, vocabulary: range, timeout_s: float) -> None:
    """Raises ProbeFailed with what the server says: better than a whole run of failures."""
    token_ids = [vocabulary[-1 - i % len(vocabulary)] for i in range(PROBE_TOKENS)]
    arrival = Arrival(at_s=0.0, token_ids=token_ids, max_tokens=2)
    (outcome,) = await LoadGenerator(target, timeout_s=timeout_s).offer([arrival])
    if outcome.error:
        raise ProbeFailed(f"the first request failed: {outcome.error}: {outcome.detail}")


async def run_load(
    target: Target,
    workload: Workload,
    prompts: Prompts,
    conditions: Conditions,
    on_progress: Progress,
) -> LoadRun:
    """Returns when every request has ended."""
    if conditions.warmup_s > workload.duration_s:
        raise ConfigError(
            (
                f"--warmup of {conditions.warmup_s:g} s drops every request: the last one arrives "
                f"at {workload.duration_s:.1f} s",
            )
        )
    generator = LoadGenerator(
        target, timeout_s=conditions.timeout_s, max_in_flight=conditions.max_in_flight
    )
    clock = MonotonicClock()
    began_at_s, cpu_before_s = clock.now_s(), time.process_time()
    async with _telling(lambda: on_progress(_progress(generator, workload, clock, began_at_s))):
        outcomes = await generator.offer(prompts.arrivals(workload.rows))
    cpu = Cpu(cpu_s=time.process_time() - cpu_before_s, wall_s=clock.now_s() - began_at_s)
    window = Window(from_s=conditions.warmup_s, to_s=workload.duration_s)
    measures = measure(outcomes, window=window, limits=conditions.limits, cpu=cpu)
    return LoadRun(workload=workload, outcomes=outcomes, measures=measures)


@asynccontextmanager
async def _telling(tell: Callable[[], None]) -> AsyncIterator[None]:
    """Every TICK_S until the block ends."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_repeat(tell))
        yield
        task.cancel()


async def _repeat(tell: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        tell()


def _progress(
    generator: LoadGenerator, workload: Workload, clock: MonotonicClock, began_at_s: float
) -> str:
    tally, passed_s = generator.tally, clock.now_s() - began_at_s
    return (
        f"{passed_s:.0f} of {workload.duration_s:.0f} s at {workload.rate_per_s:.4g} a second: "
        f"{tally.num_sent} of {len(workload.rows)} sent, {tally.num_in_flight} in flight, "
        f"{tally.num_failed} failed"
    )
