"""The claims of the main job, each beside its baseline in the same run, on SmolLM2 in float32.

Workload, seeds and bars are fixed here: 30 prompts of 64 tokens for what the router adds, 10 of 512
for the first gap, 3 of 1,024 for the event loop, 5 cancels of each phase, 30 s of doing nothing.
"""

import asyncio
import random
import statistics
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise

from bench.asking import TIMEOUT_S, ask, random_prompt
from bench.pair import Pair, clock, running_pair
from bench.report import Bar, Figure, Report, figure
from deploy.default_model import fetch_default_model
from router.events import Delta, Finished

Progress = Callable[[str], None]

SEED = 20_261
SHORT_TOKENS, LONG_TOKENS, LAG_TOKENS = 64, 512, 1024
NUM_SHORT, NUM_LONG, NUM_LAG, NUM_CANCELS = 30, 10, 3, 5
NUM_ANSWER_TOKENS = 12
IDLE_S = 30.0
QUICK = 3
"""--quick divides repetitions and the idle time by this."""
CHUNK_TOKENS = 256
"""WorkerConfig.prefill_step_tokens: what a cancelled prompt may still compute."""

MAX_ROUTER_ADDS_S = 0.020
MAX_STEPS_IN_GAP = 2
MAX_LAG_S = 0.010
MAX_FREE_S = 0.050
MAX_IDLE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer as its client saw it; seconds."""

    ttft_s: float
    first_gap_s: float
    step_s: float
    """Median gap between tokens after the second."""
    finished: Finished


def measure(*, quick: bool, on_progress: Progress) -> Report:
    """Run everything; see the module's text."""
    return asyncio.run(_measure(QUICK if quick else 1, on_progress))


async def _measure(divisor: int, on_progress: Progress) -> Report:
    model_dir = fetch_default_model()
    async with running_pair(model_dir) as pair:
        rng = random.Random(SEED)
        on_progress("warming up")
        for num_tokens in (SHORT_TOKENS, LONG_TOKENS):
            await _ask(pair, random_prompt(rng, num_tokens))
        on_progress("what the router adds to TTFT")
        added, added_bars = await _router_adds(pair, rng, NUM_SHORT // divisor)
        on_progress("the first gap")
        gap, gap_bars = await _first_gap(pair, rng, NUM_LONG // divisor)
        step_s = gap[-1].median
        on_progress("the event loop during a long prefill")
        lag, lag_bars = await _loop_lag(pair, rng, max(1, NUM_LAG // divisor))
        on_progress("cancels")
        num_cancels = max(1, NUM_CANCELS // divisor)
        decode_freed, decode_bars = await _cancel_decodes(pair, rng, num_cancels, step_s)
        prefill_freed, prefill_bars = await _cancel_prefills(pair, rng, num_cancels)
        on_progress("doing nothing")
        idle, idle_bars = await _idle(pair, IDLE_S / divisor)
    return Report(
        name="smoke",
        figures=(*added, *gap, *lag, *decode_freed, *prefill_freed, *idle),
        bars=(*added_bars, *gap_bars, *lag_bars, *decode_bars, *prefill_bars, *idle_bars),
    )


async def _router_adds(pair: Pair, rng: random.Random, num: int) -> tuple[list[Figure], list[Bar]]:
    direct_s, routed_s = [], []
    for index in range(num):
        prompt = random_prompt(rng, SHORT_TOKENS)
        direct_s.append(await pair.direct_ttft_s(prompt, f"direct/{index}"))
        routed_s.append((await _ask(pair, prompt, max_tokens=1)).ttft_s)
    direct = figure("TTFT, prefill called directly (baseline)", direct_s, "s")
    routed = figure("TTFT through the router", routed_s, "s")
    adds_s = routed.median - direct.median
    bar = Bar(name="router adds to TTFT, p50", value=adds_s, bound=MAX_ROUTER_ADDS_S, unit="s")
    return [direct, routed], [bar]


async def _first_gap(pair: Pair, rng: random.Random, num: int) -> tuple[list[Figure], list[Bar]]:
    floors_s, answers = [], []
    for index in range(num):
        prompt = random_prompt(rng, LONG_TOKENS)
        floors_s.append(await pair.transfer_floor_s(prompt, f"floor/{index}"))
        answers.append(await _ask(pair, prompt))
    floor = figure(f"fetch of {LONG_TOKENS} tokens' KV (floor)", floors_s, "s")
    gap = figure(f"first gap at {LONG_TOKENS} tokens", (a.first_gap_s for a in answers), "s")
    step = figure("decode step", (a.step_s for a in answers), "s")
    bound_s = floor.median + MAX_STEPS_IN_GAP * step.median
    bar = Bar(name="first gap ≤ floor + 2 decode steps", value=gap.median, bound=bound_s, unit="s")
    return [floor, gap, step], [bar]


async def _loop_lag(pair: Pair, rng: random.Random, num: int) -> tuple[list[Figure], list[Bar]]:
    lags_s, computes_s = [], []
    for _ in range(num):
        await pair.books(pair.prefill)  # forget the samples so far
        answer = await _ask(pair, random_prompt(rng, LAG_TOKENS), max_tokens=1)
        lags_s.append((await pair.books(pair.prefill)).integrity.loop_lag_p99_s)
        computes_s.append(answer.finished.timing.prefill.compute_s)
    name = f"event loop lag p99 during a {LAG_TOKENS}-token prefill"
    bar = Bar(name=name, value=max(lags_s), bound=MAX_LAG_S, unit="s")
    compute = figure(f"prefill of {LAG_TOKENS} tokens", computes_s, "s")
    return [figure(name, lags_s, "s"), compute], [bar]


async def _cancel_decodes(
    pair: Pair, rng: random.Random, num: int, step_s: float
) -> tuple[list[Figure], list[Bar]]:
    waits_s = [await _cancel_decode(pair, random_prompt(rng, LONG_TOKENS)) for _ in range(num)]
    freed = figure("cancel until decode's blocks are free", waits_s, "s")
    bound_s = step_s + MAX_FREE_S
    bar = Bar(name=f"{freed.name} ≤ step + 50 ms", value=freed.median, bound=bound_s, unit="s")
    return [freed], [bar]


async def _cancel_prefills(
    pair: Pair, rng: random.Random, num: int
) -> tuple[list[Figure], list[Bar]]:
    """Just after a chunk has begun, the worst moment; beside whole prompts of one chunk.

    The baseline is handed over and probed as the cancelled one is.
    """
    chunks_s, waits_s, num_chunks = [], [], []
    for _ in range(num):
        whole = _ask(pair, random_prompt(rng, CHUNK_TOKENS), max_tokens=2)
        timing = (await pair.while_probed(pair.prefill, whole)).finished.timing
        chunks_s.append(timing.prefill.compute_s)
        wait_s, num_steps = await _cancel_prefill(pair, random_prompt(rng, LAG_TOKENS))
        waits_s.append(wait_s)
        num_chunks.append(num_steps)
    chunk = figure(f"one chunk of {CHUNK_TOKENS} tokens (baseline)", chunks_s, "s")
    freed = figure("cancel until prefill's blocks are free", waits_s, "s")
    after = figure("chunks that end after a cancel", num_chunks, "chunks")
    bars = [
        Bar(name=f"{after.name}, worst", value=max(num_chunks), bound=1, unit="chunks"),
        Bar(name=f"{freed.name} ≤ chunk", value=freed.median, bound=chunk.median, unit="s"),
    ]
    return [chunk, freed, after], bars


async def _cancel_decode(pair: Pair, prompt: tuple[int, ...]) -> float:
    stream = pair.client.generate(
        token_ids=prompt, max_tokens=400, temperature=0.0, ignore_eos=True, timeout_s=TIMEOUT_S
    )
    num_tokens = 0
    async with aclosing(stream) as events:
        async for event in events:
            num_tokens += len(event.token_ids) if isinstance(event, Delta) else 0
            if num_tokens >= 3:
                break
    return await pair.until_freed(pair.decode)


async def _cancel_prefill(pair: Pair, prompt: tuple[int, ...]) -> tuple[float, int]:
    """Seconds until the blocks are free, and steps that returned in them."""
    stream = pair.client.generate(token_ids=prompt, max_tokens=4, timeout_s=TIMEOUT_S)
    async with aclosing(stream) as events:
        await anext(events)
        await pair.until_busy(pair.prefill)
        before = (await pair.books(pair.prefill)).integrity.num_steps
    wait_s = await pair.until_freed(pair.prefill)
    return wait_s, (await pair.books(pair.prefill)).integrity.num_steps - before


async def _idle(pair: Pair, duration_s: float) -> tuple[list[Figure], list[Bar]]:
    before_s, started_s = pair.cpu_s(), clock.now_s()
    await asyncio.sleep(duration_s)
    share = (pair.cpu_s() - before_s) / (clock.now_s() - started_s)
    name = "router, prefill and decode together, idle"
    bar = Bar(name=name, value=share, bound=MAX_IDLE_SHARE, unit="cores")
    return [figure(name, [share], "cores")], [bar]


async def _ask(pair: Pair, prompt: tuple[int, ...], max_tokens: int = NUM_ANSWER_TOKENS) -> Timed:
    """One request through the router, timed by its client."""
    started_s, moments_s = clock.now_s(), list[float]()

    def on_tokens(num_tokens: int) -> None:
        moments_s.extend([clock.now_s()] * num_tokens)

    finished = await ask(pair.client, prompt, max_tokens, on_tokens)
    gaps_s = [b - a for a, b in pairwise(moments_s)]
    return Timed(
        ttft_s=moments_s[0] - started_s,
        first_gap_s=gaps_s[0] if gaps_s else 0.0,
        step_s=statistics.median(gaps_s[1:]) if len(gaps_s) > 1 else 0.0,
        finished=finished,
    )
