"""How fast an instance serves requests of mixed lengths, beside transformers' static batches.

Workload, seed and bar are fixed here. 64 requests with prompts of 32 to 128 tokens (uniform) and
answers of 8 to 192 (log-uniform). Ours: 32 in flight, through a router to one mixed instance with
32 places, one thread and no prefix cache. The baseline: transformers' `generate` in this process,
one thread, batches of 32 in the order of arrival, left padded, each until its longest answer is
done. Only tokens that were asked for count. The two take turns; SmolLM2, float32, greedy.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench.asking import ask
from bench.mixed_lengths import MixedRequest, mixed_requests, num_useful_tokens, static_batches
from bench.processes import running
from bench.report import Bar, Figure, figure
from bench.transformers_baseline import Baseline
from core.clock import MonotonicClock
from core.config import Config, EngineConfig, WorkerConfig
from core.member import Role
from router.client import AsyncClient

SEED = 20_264

NUM_REQUESTS = 64
NUM_IN_FLIGHT = 32
PROMPT_TOKENS = range(32, 129)
OUTPUT_TOKENS = range(8, 193)
NUM_ROUNDS = 2
MIN_RATIO = 2.0
"""Of useful tokens per second, ours to the baseline's."""

clock = MonotonicClock()


async def measure_served(
    model_dir: Path, baseline: Baseline, divisor: int
) -> tuple[list[Figure], list[Bar]]:
    """Requests served, in turn by either side; `divisor` divides the number of rounds."""
    requests = mixed_requests(
        random.Random(SEED),
        NUM_REQUESTS,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    ours_s, theirs_s = [], []
    async with _served(model_dir, requests) as client:
        for _ in range(max(1, NUM_ROUNDS // divisor)):
            started_s = clock.now_s()
            await _ask_all(client, requests)
            ours_s.append(clock.now_s() - started_s)
            started_s = clock.now_s()
            # A thread, so that connections stay alive meanwhile.
            await asyncio.to_thread(_generate_all, baseline, requests)
            theirs_s.append(clock.now_s() - started_s)
    return served_outcome(num_useful_tokens(requests), ours_s, theirs_s)


def served_outcome(
    num_tokens: int, ours_s: Sequence[float], theirs_s: Sequence[float]
) -> tuple[list[Figure], list[Bar]]:
    """Figures and bar from the seconds that each round took for as many useful tokens."""
    what = f"{NUM_REQUESTS} requests of mixed lengths, {NUM_IN_FLIGHT} in flight"
    ours = figure(f"{what}: useful tokens", [num_tokens / s for s in ours_s], "/s")
    theirs = figure(f"{what}: static batches", [num_tokens / s for s in theirs_s], "/s")
    bar = Bar(
        name=f"{what}: useful tokens/s, ours to transformers'",
        value=ours.median / theirs.median,
        bound=MIN_RATIO,
        unit="×",
        at_most=False,
    )
    return [ours, theirs], [bar]


@asynccontextmanager
async def _served(model_dir: Path, requests: Sequence[MixedRequest]) -> AsyncIterator[AsyncClient]:
    """A mixed instance that has answered once."""
    config = Config(
        engine=EngineConfig(prefix_cache=False), worker=WorkerConfig(max_running=NUM_IN_FLIGHT)
    )
    async with running(model_dir, [Role.MIXED], config) as cluster:
        await _ask_one_by_one(cluster.client, iter(requests[:1]))
        yield cluster.client


async def _ask_all(client: AsyncClient, requests: Sequence[MixedRequest]) -> None:
    waiting = iter(requests)
    async with asyncio.TaskGroup() as group:
        for _ in range(NUM_IN_FLIGHT):
            group.create_task(_ask_one_by_one(client, waiting))


async def _ask_one_by_one(client: AsyncClient, waiting: Iterator[MixedRequest]) -> None:
    """Take the next request as long as there is one."""
    for request in waiting:
        arrived: list[int] = []
        await ask(client, request.prompt, request.num_output_tokens, arrived.append)
        if sum(arrived) != request.num_output_tokens:
            raise RuntimeError(f"{sum(arrived)} of {request.num_output_tokens} tokens came")


def _generate_all(baseline: Baseline, requests: Sequence[MixedRequest]) -> None:
    for batch in static_batches(requests, NUM_IN_FLIGHT):
        baseline.generate(batch)
