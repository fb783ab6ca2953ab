"""What an instance promises of its steps: no stalls beside long prompts, no starved tenant, speed.

Workload, seeds and bars are fixed here. *Stall-free*: one mixed instance (SmolLM2, float32, one
thread, a budget of 64 tokens per step); 8 answers are written while 6 prompts of 1,024 tokens
arrive, each when the one before has its answer of 8 tokens. The baseline, in the same run and
before: the median of a step that holds those 8 answers and the last chunk of such a prompt.
*Fairness*: a mixed instance with 4 places in its batch behind a router with 8; one tenant keeps 80
requests in flight, the other 8, of 32 prompt and 16 output tokens, for 45 s. With fewer than the
router's places the smaller tenant would be without work each time its answers end together.
*Speed*: see engine_speed and engine_served.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from bench.asking import TIMEOUT_S, ask, random_prompt
from bench.engine_served import measure_served
from bench.engine_speed import Outcome, Progress, greedy_entry, measure_steps
from bench.processes import running
from bench.report import Bar, Figure, Report, figure
from bench.transformers_baseline import Baseline
from core.clock import MonotonicClock
from core.config import Config, EngineConfig, RouterConfig, WorkerConfig
from core.member import Role
from deploy.default_model import fetch_default_model
from engine.batch import BatchEntry
from engine.model import load_model
from engine.runner import one_rank
from router.client import AsyncClient

PARTS = ("stalls", "fairness", "speed")
"""What `--only` can name."""

SEED = 20_262
QUICK = 3
"""--quick divides repetitions and durations by this."""

STEP_TOKENS = 64
NUM_ANSWERS = 8
MAX_ANSWER_TOKENS = 4000
ANSWER_PROMPT_TOKENS = 64
PROMPT_TOKENS = 1024
PROMPT_ANSWER_TOKENS = 8
NUM_PROMPTS = 6
NUM_BASELINE_STEPS = 12
MAX_STALL = 1.3
"""Of the budget's step time: the longest gap between two tokens of an answer."""

FLOOD, TRICKLE = 80, 8
"""Requests that the two tenants keep in flight."""
FAIR_PROMPT_TOKENS, FAIR_ANSWER_TOKENS = 32, 16
FAIR_PLACES = 4
FAIR_S = 45.0
MAX_UNFAIRNESS = 1.3
"""Served tokens of one tenant against the other's, while both have work."""

clock = MonotonicClock()


def measure(*, quick: bool, on_progress: Progress, only: str | None = None) -> Report:
    """Run everything or one of PARTS; see the module's text."""
    return asyncio.run(_measure(QUICK if quick else 1, on_progress, PARTS if not only else (only,)))


async def _measure(divisor: int, on_progress: Progress, parts: Sequence[str]) -> Report:
    model_dir = fetch_default_model()
    figures: list[Figure] = []
    bars: list[Bar] = []
    measures = {"stalls": _stalls, "fairness": _fairness, "speed": _speed}
    for part in parts:
        outcome = await measures[part](model_dir, divisor, on_progress)
        figures += outcome[0]
        bars += outcome[1]
    return Report(name="engine", figures=tuple(figures), bars=tuple(bars))


async def _speed(model_dir: Path, divisor: int, on_progress: Progress) -> Outcome:
    on_progress("loading transformers")
    baseline = await asyncio.to_thread(Baseline, model_dir)
    steps = await asyncio.to_thread(measure_steps, model_dir, baseline, divisor, on_progress)
    on_progress("requests of mixed lengths")
    served = await measure_served(model_dir, baseline, divisor)
    return steps[0] + served[0], steps[1] + served[1]


# --- stalls -----------------------------------------------------------------------------------


def _budget_step(model_dir: Path, rng: random.Random) -> Figure:
    """The baseline: the step that takes longest, computed alone."""
    block_size, num_blocks = EngineConfig().block_size, 256
    runner = one_rank(
        load_model(model_dir), num_blocks=num_blocks, block_size=block_size, num_threads=1
    )
    table_size = PROMPT_TOKENS // block_size
    tables = [tuple(range(table_size))]
    answer_blocks = -(-2 * ANSWER_PROMPT_TOKENS // block_size)
    for index in range(NUM_ANSWERS):
        first = table_size + index * answer_blocks
        tables.append(tuple(range(first, first + answer_blocks)))
    chunk_tokens = STEP_TOKENS - NUM_ANSWERS
    entries = [_entry(rng, PROMPT_TOKENS - chunk_tokens, chunk_tokens, tables[0])]
    entries += [_entry(rng, ANSWER_PROMPT_TOKENS, 1, table) for table in tables[1:]]
    runner.step(entries)
    times_s = [runner.step(entries).compute_s for _ in range(NUM_BASELINE_STEPS)]
    return figure(f"step of {STEP_TOKENS} tokens, alone (baseline)", times_s, "s")


def _entry(rng: random.Random, start: int, num: int, block_ids: tuple[int, ...]) -> BatchEntry:
    return greedy_entry(str(block_ids[0]), random_prompt(rng, num), start, block_ids)


async def _stalls(model_dir: Path, divisor: int, on_progress: Progress) -> Outcome:
    rng = random.Random(SEED)
    on_progress("a step of the whole budget")
    step = await asyncio.to_thread(_budget_step, model_dir, rng)
    on_progress("answers beside long prompts")
    config = Config(worker=WorkerConfig(mixed_step_tokens=STEP_TOKENS))
    async with (
        running(model_dir, [Role.MIXED], config) as cluster,
        _writing(cluster.client, rng) as answers,
    ):
        ttfts_s = []
        started_s = clock.now_s()
        for _ in range(NUM_PROMPTS // divisor):
            asked_s = clock.now_s()
            prompt = random_prompt(rng, PROMPT_TOKENS)
            moments_s = await _moments(cluster.client, prompt, PROMPT_ANSWER_TOKENS)
            ttfts_s.append(moments_s[0] - asked_s)
        ended_s = clock.now_s()
    gaps_s = [
        after_s - before_s
        for moments_s in answers
        for before_s, after_s in pairwise(moments_s)
        if started_s <= before_s and after_s <= ended_s
    ]
    gaps = figure(f"gap between tokens while {PROMPT_TOKENS}-token prompts arrive", gaps_s, "s")
    ttft = figure(f"TTFT of those prompts beside {NUM_ANSWERS} answers", ttfts_s, "s")
    name = f"longest gap ≤ {MAX_STALL:g} × the budget's step"
    bar = Bar(name=name, value=max(gaps_s), bound=MAX_STALL * step.median, unit="s")
    return [step, gaps, ttft], [bar]


@asynccontextmanager
async def _writing(client: AsyncClient, rng: random.Random) -> AsyncIterator[list[list[float]]]:
    """Answers under way, all past their first tokens; when their tokens came."""
    answers: list[list[float]] = [[] for _ in range(NUM_ANSWERS)]
    begun = asyncio.Event()

    def on_tokens(moments_s: list[float], num_tokens: int) -> None:
        _note(moments_s, num_tokens)
        if all(len(others_s) > 2 for others_s in answers):
            begun.set()

    async with asyncio.TaskGroup() as group:
        tasks = [
            # As long as the bench may take; cancelled at its end.
            group.create_task(
                ask(
                    client,
                    random_prompt(rng, ANSWER_PROMPT_TOKENS),
                    MAX_ANSWER_TOKENS,
                    partial(on_tokens, moments_s),
                )
            )
            for moments_s in answers
        ]
        async with asyncio.timeout(TIMEOUT_S):
            await begun.wait()
        yield answers
        for task in tasks:
            task.cancel()


async def _moments(client: AsyncClient, prompt: tuple[int, ...], max_tokens: int) -> list[float]:
    """When each token came."""
    moments_s: list[float] = []
    await ask(client, prompt, max_tokens, partial(_note, moments_s))
    return moments_s


def _note(moments_s: list[float], num_tokens: int) -> None:
    moments_s += [clock.now_s()] * num_tokens


# --- fairness ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Tenant:
    """One side of the contest."""

    name: str
    num_in_flight: int
    moments_s: list[float] = field(default_factory=list)
    """Of every output token."""

    def served(self, since_s: float, until_s: float) -> int:
        """Output tokens in a span."""
        return sum(since_s <= moment_s < until_s for moment_s in self.moments_s)


async def _fairness(model_dir: Path, divisor: int, on_progress: Progress) -> Outcome:
    on_progress("two tenants")
    duration_s = FAIR_S / divisor
    config = Config(
        worker=WorkerConfig(max_running=FAIR_PLACES),
        router=RouterConfig(max_running=2 * FAIR_PLACES),
    )
    tenants = [Tenant("flood", FLOOD), Tenant("trickle", TRICKLE)]
    async with running(model_dir, [Role.MIXED], config) as cluster:
        started_s = clock.now_s()
        await _contest(cluster.client, random.Random(SEED), tenants, duration_s)
    # The first quarter is for the queues to fill.
    since_s, until_s = started_s + duration_s / 4, started_s + duration_s
    rates = [tenant.served(since_s, until_s) / (until_s - since_s) for tenant in tenants]
    figures = [
        figure(f"output tokens of the tenant with {tenant.num_in_flight} requests", [rate], "/s")
        for tenant, rate in zip(tenants, rates, strict=True)
    ]
    ratio = max(rates) / max(min(rates), 1e-9)
    name = f"{FLOOD} requests against {TRICKLE}: served tokens, one tenant to the other"
    return figures, [Bar(name=name, value=ratio, bound=MAX_UNFAIRNESS, unit="×")]


async def _contest(
    client: AsyncClient, rng: random.Random, tenants: Sequence[Tenant], duration_s: float
) -> None:
    try:
        async with asyncio.timeout(duration_s), asyncio.TaskGroup() as group:
            for tenant in tenants:
                for _ in range(tenant.num_in_flight):
                    group.create_task(_ask_on(client, rng, tenant))
    except TimeoutError:
        pass


async def _ask_on(client: AsyncClient, rng: random.Random, tenant: Tenant) -> None:
    while True:
        prompt = random_prompt(rng, FAIR_PROMPT_TOKENS)
        noted = partial(_note, tenant.moments_s)
        await ask(client, prompt, FAIR_ANSWER_TOKENS, noted, tenant=tenant.name)
