"""What the handoff of KV costs a request, on SmolLM2 in float32, between real processes.

Prompts of 64 to 1,024 tokens: the part of the transfer that nothing hides, over the prefill's time.
At 64 tokens the adaptive choice against one piece, interleaved, and one piece against itself for
the noise. A chat of five turns: what each computes and moves. KV of 8 bits: what it changes.
Workload and bars: `bench.handoff_spec`.
"""

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import handoff_spec as spec
from bench.asking import TIMEOUT_S, random_prompt
from bench.handoff_tokens import chat, eight_bits
from bench.processes import running
from bench.report import Bar, Figure, Report, figure
from core.clock import MonotonicClock
from core.config import Config, EngineConfig, HandoffConfig
from core.member import Role
from deploy.default_model import fetch_default_model
from router.client import AsyncClient
from router.events import Delta, Finished, RequestTiming

Progress = Callable[[str], None]
PARTS = ("exposed", "choice", "chat", "int8")
PAIR = (Role.PREFILL, Role.DECODE)

clock = MonotonicClock()
Measured = tuple[list[Figure], list[Bar]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer."""

    first_gap_s: float
    """As the client saw it."""
    timing: RequestTiming


def measure(*, quick: bool, on_progress: Progress, only: str | None = None) -> Report:
    """Run everything, or one part; see the module's text."""
    return asyncio.run(_measure(quick, on_progress, only))


async def _measure(quick: bool, on_progress: Progress, only: str | None) -> Report:
    model_dir = fetch_default_model()
    parts = {"exposed": _exposed, "choice": _choice, "chat": chat, "int8": eight_bits}
    figures, bars = list[Figure](), list[Bar]()
    for name in PARTS if only is None else (only,):
        on_progress(name)
        more_figures, more_bars = await parts[name](model_dir, quick)
        figures += more_figures
        bars += more_bars
    return Report(name="handoff", figures=tuple(figures), bars=tuple(bars))


def config_of(overlap: str = "adaptive") -> Config:
    """Without a prefix cache: every prompt is computed and moved whole."""
    handoff = HandoffConfig(overlap=overlap)
    return Config(engine=EngineConfig(prefix_cache=False), handoff=handoff)


async def ask_once(client: AsyncClient, prompt: Sequence[int]) -> Asked:
    """A few greedy tokens."""
    moments_s = list[float]()
    stream = client.generate(
        token_ids=tuple(prompt),
        max_tokens=spec.ANSWER_TOKENS,
        temperature=0.0,
        ignore_eos=True,
        timeout_s=TIMEOUT_S,
    )
    async for event in stream:
        if isinstance(event, Delta):
            moments_s.extend([clock.now_s()] * len(event.token_ids))
        elif isinstance(event, Finished):
            timing = event.timing
    return Asked(next(b - a for a, b in pairwise(moments_s)), timing)


async def _warm(client: AsyncClient, rng: random.Random, lengths: Sequence[int]) -> None:
    for _ in range(spec.WARMUPS):
        for num_tokens in lengths:
            await ask_once(client, random_prompt(rng, num_tokens))


# --- what is exposed ------------------------------------------------------------------------------


async def _exposed(model_dir: Path, quick: bool) -> Measured:
    rng = random.Random(spec.SEED)
    asked: dict[int, list[RequestTiming]] = {n: [] for n in spec.PROMPT_TOKENS}
    async with running(model_dir, PAIR, config_of()) as cluster:
        await _warm(cluster.client, rng, spec.PROMPT_TOKENS)
        for _ in range(spec.QUICK_ROUNDS if quick else spec.ROUNDS):
            for num_tokens, timings in asked.items():
                answer = await ask_once(cluster.client, random_prompt(rng, num_tokens))
                timings.append(answer.timing)
    figures, bars = list[Figure](), list[Bar]()
    for num_tokens, timings in asked.items():
        figures += _parts_of(num_tokens, timings)
        if num_tokens >= spec.BAR_FROM_TOKENS:
            bound = spec.MAX_EXPOSED_SHARE
            bars += [
                Bar(name=share.name, value=share.median, bound=bound, unit="share")
                for share in figures[-2:]
            ]
    return figures, bars


def _parts_of(num_tokens: int, timings: Sequence[RequestTiming]) -> list[Figure]:
    """The last two are shares of the prefill: what is exposed, and that with all beside it."""
    parts: list[tuple[str, str, Callable[[RequestTiming], float]]] = [
        ("prefill computes", "s", lambda t: t.prefill.compute_s),
        ("credits (start to all granted)", "s", lambda t: t.handoff.reserve_s),
        ("first byte (from the first credit)", "s", lambda t: t.handoff.first_byte_s),
        ("streaming (first byte to last)", "s", lambda t: t.handoff.streaming_s),
        ("after the first token: sending", "s", lambda t: t.handoff.source_tail_s),
        ("after the first token: no credit", "s", lambda t: t.handoff.credit_wait_s),
        ("commit (last byte to commit)", "s", lambda t: t.handoff.sink_tail_s),
        ("segments", "", lambda t: t.handoff.num_segments),
        ("first gap less decode's queue and step", "s", _between),
        ("exposed", "s", lambda t: t.handoff.exposed_s),
        ("exposed / prefill", "share", lambda t: t.handoff.exposed_s / t.prefill.compute_s),
        ("between the two / prefill", "share", lambda t: _between(t) / t.prefill.compute_s),
    ]
    return [
        figure(f"{num_tokens}: {name}", (value(t) for t in timings), unit)
        for name, unit, value in parts
    ]


def _between(timing: RequestTiming) -> float:
    """All of the first gap that is not decode's own: what is exposed, and every turn of a process
    or of the network between the two tokens, in which a sent segment may still be on its way."""
    handoff = timing.handoff
    return timing.first_gap_s - handoff.decode_queue_s - handoff.first_step_s


# --- adaptive against one piece -------------------------------------------------------------------


async def _choice(model_dir: Path, quick: bool) -> Measured:
    """The rounds go round all pairs, in changing order; nothing else runs beside."""
    names = {"adaptive": "adaptive", "one piece": "whole", "one piece again": "whole"}
    gaps_s: dict[str, list[float]] = {name: [] for name in names}
    segments: dict[str, list[float]] = {name: [] for name in names}
    rng = random.Random(spec.SEED)
    async with AsyncExitStack() as stack:
        clients = {}
        for name, overlap in names.items():
            pair = running(model_dir, PAIR, config_of(overlap=overlap))
            clients[name] = (await stack.enter_async_context(pair)).client
            # What is adaptive has seen long prompts too.
            await _warm(clients[name], rng, spec.PROMPT_TOKENS)
        for _ in range(spec.QUICK_SHORT_ROUNDS if quick else spec.SHORT_ROUNDS):
            prompt = random_prompt(rng, spec.SHORT_TOKENS)
            for name in rng.sample(list(names), len(names)):
                answer = await ask_once(clients[name], prompt)
                gaps_s[name].append(answer.first_gap_s)
                segments[name].append(answer.timing.handoff.num_segments)
    medians = {name: statistics.median(values) for name, values in gaps_s.items()}
    one, again = medians["one piece"], medians["one piece again"]
    noise = max(one, again) / min(one, again) - 1.0
    figures = [figure(f"first gap, {name}", values, "s") for name, values in gaps_s.items()]
    figures += [figure(f"segments, {name}", values, "") for name, values in segments.items()]
    figures.append(figure("noise: one piece against itself", [noise], "share"))
    # Against both: neither is the better baseline.
    ratio = medians["adaptive"] / statistics.mean((one, again))
    name = f"{spec.SHORT_TOKENS} tokens: first gap, adaptive / one piece"
    return figures, [Bar(name=name, value=ratio, bound=1.0 + noise, unit="")]
