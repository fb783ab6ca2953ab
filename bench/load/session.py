"""All of `baton bench` but its command line and its output: options to results."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.endpoint import open_target
from bench.load.goodput import Goodput, find_goodput
from bench.load.measures import Measures
from bench.load.offer import Target
from bench.load.options import BenchOptions
from bench.load.run import LoadRun, Progress, probe, run_load
from bench.load.workload import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What was asked for, and what came of it."""

    options: BenchOptions
    runs: Sequence[LoadRun]
    """In the order they were made: one, or one for each rate tried."""
    goodput: Goodput | None = None

    @property
    def shown(self) -> LoadRun:
        """The one to describe: with a search, that of the highest rate that attained the target."""
        low_per_s = self.goodput.low_per_s if self.goodput else 0.0
        return next((r for r in self.runs if r.workload.rate_per_s == low_per_s), self.runs[0])


async def run_bench(options: BenchOptions, on_progress: Progress) -> LoadResult:
    """Raises ConfigError before, and ProbeFailed when nothing can be measured."""
    options.check()
    source = options.load.source()
    async with open_target(options.endpoint, options.timeout_s) as target:
        await probe(target, options.load.prompts().vocabulary, options.timeout_s)
        session = Session(options, target, source, on_progress)
        rate_per_s = options.load.rate_of(source)
        if not options.finds_goodput:
            await session.try_rate(rate_per_s)
            return LoadResult(options=options, runs=session.runs)
        found = await find_goodput(options.search(rate_per_s), session.try_rate)
        return LoadResult(options=options, runs=session.runs, goodput=found)


class Session:
    """Runs at one rate after the other, of which none knows another's prompts."""

    def __init__(
        self, options: BenchOptions, target: Target, source: Source, on_progress: Progress
    ) -> None:
        self._options = options
        self._target = target
        self._source = source
        self._on_progress = on_progress
        self.runs = list[LoadRun]()

    async def try_rate(self, rate_per_s: float) -> Measures:
        """The same lengths, and the same gaps scaled, at every rate."""
        load = self._options.load
        workload = self._source.workload(rate_per_s=rate_per_s, extent=load.extent, seed=load.seed)
        run = await run_load(
            self._target,
            workload,
            # Prompts seen before would be found in prefix caches.
            load.prompts(offset=len(self.runs)),
            self._options.conditions,
            self._on_progress,
        )
        self.runs.append(run)
        return run.measures
