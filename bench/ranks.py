"""Ranks of one instance: what a death costs, whether stages overlap, how fast several are.

SmolLM2, float32, one thread per rank. *Death*: a mixed instance as a plain process writes an
answer; a rank other than the leader gets SIGKILL; the time until the leader's process has ended,
which is when its peers' connections break. *Overlap*: a prompt of 1,024 tokens in one step on two
stages; the time in which both compute, as a share of the shorter stage's computing time. *Speed*:
the same step and a decode step of 8 answers on one rank, two tensor-parallel ranks and two stages;
no bars, since the machine needs a free core per rank.
"""

import asyncio
import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.asking import ask, random_prompt
from bench.processes import running
from bench.report import Bar, Figure, Report, figure
from core.clock import MonotonicClock
from core.config import Config
from core.member import Role
from core.parallel import ParallelLayout
from deploy.default_model import fetch_default_model

Progress = Callable[[str], None]

SEED = 40_262
DEATHS = (ParallelLayout(tp=2), ParallelLayout(pp=2))
NUM_DEATHS = 3
"""Per layout."""
MAX_END_S = 2.0
END_TIMEOUT_S = 60.0
ANSWER_TOKENS = 2000
TOKENS_BEFORE_DEATH = 10

clock = MonotonicClock()


def measure(*, quick: bool, on_progress: Progress) -> Report:
    """Everything above; the timeline of the stages goes to standard output."""
    model_dir = fetch_default_model()
    rng = random.Random(SEED)
    figures: list[Figure] = []
    for layout in DEATHS:
        times_s = []
        for number in range(1 if quick else NUM_DEATHS):
            on_progress(f"a rank of {layout} dies, {number + 1}")
            times_s.append(asyncio.run(_death_s(model_dir, rng, layout)))
        figures.append(
            figure(f"SIGKILL of a rank until its instance of {layout} is gone", times_s, "s")
        )
    worst_s = max(max(f.values) for f in figures)
    bar = Bar(name="longest of these", value=worst_s, bound=MAX_END_S, unit="s")
    return Report(name="ranks", figures=tuple(figures), bars=(bar,))


async def _death_s(model_dir: Path, rng: random.Random, layout: ParallelLayout) -> float:
    async with running(model_dir, [Role.MIXED], Config(), layout) as cluster:
        leader = cluster.pids[0]
        writing, arrived = asyncio.Event(), 0

        def on_tokens(num: int) -> None:
            nonlocal arrived
            arrived += num
            if arrived >= TOKENS_BEFORE_DEATH:
                writing.set()

        asking = asyncio.ensure_future(
            ask(cluster.client, random_prompt(rng, 64), ANSWER_TOKENS, on_tokens)
        )
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await writing.wait()
            return await asyncio.to_thread(_kill_and_wait, leader)
        finally:
            asking.cancel()
            await asyncio.wait([asking])


def _kill_and_wait(leader: int) -> float:
    """Seconds from a rank's death to its leader's."""
    ranks = [p for p in psutil.Process(leader).children() if "engine.ranks.worker" in p.cmdline()]
    descriptor = os.pidfd_open(leader)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        killed_s = clock.now_s()
        os.kill(ranks[-1].pid, signal.SIGKILL)
        if not poll.poll(END_TIMEOUT_S * 1000):
            raise TimeoutError(f"the instance lived for {END_TIMEOUT_S:.0f} s without a rank")
        return clock.now_s() - killed_s
    finally:
        os.close(descriptor)
