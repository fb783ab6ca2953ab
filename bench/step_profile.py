"""`python -m bench.step_profile`: where a decode step's time and a prompt chunk's goes."""

import random
import statistics
from collections.abc import Sequence

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from bench.asking import random_prompt
from bench.engine_speed import greedy_entry, scattered_tables
from core.clock import MonotonicClock
from core.config import EngineConfig, WorkerConfig
from deploy.default_model import fetch_default_model
from engine.batch import BatchEntry
from engine.model import load_model
from engine.runner import LocalRunner, one_rank

SEED = 20_265
CONTEXT_TOKENS = 128
NUM_STEPS = 11
"""Without the profiler, for the step's own time."""
NUM_ROWS = 16

clock = MonotonicClock()


def main() -> None:
    """Print one table for each of the two steps."""
    config, console = EngineConfig(), Console()
    runner = one_rank(
        load_model(fetch_default_model()),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_threads=1,
    )
    runner.warm_up()
    rng, num_chunk_tokens = random.Random(SEED), WorkerConfig().prefill_step_tokens
    num_blocks = -(-max(CONTEXT_TOKENS + 1, num_chunk_tokens) // config.block_size)
    table, _ = scattered_tables(2, num_blocks)
    runner.step([greedy_entry("context", random_prompt(rng, CONTEXT_TOKENS), 0, table)])
    decode = greedy_entry("decode", random_prompt(rng, 1), CONTEXT_TOKENS, table)
    _show(console, "decode step at batch 1", runner, [decode])
    chunk = greedy_entry("chunk", random_prompt(rng, num_chunk_tokens), 0, table)
    _show(console, f"prompt chunk of {num_chunk_tokens} tokens", runner, [chunk])


def share_outside(ops_s: float, wall_s: float) -> float:
    """Of a step's time, 0-1, what no torch operator accounts for.

    Under the profiler operators are a little slower: their sum may pass a short step's time.
    """
    return max(0.0, 1.0 - ops_s / wall_s)


def _show(console: Console, name: str, runner: LocalRunner, entries: Sequence[BatchEntry]) -> None:
    plain_s = statistics.median(_step_s(runner, entries) for _ in range(NUM_STEPS))
    # What the profiler itself sets up at its first use is not the step's.
    with profile(activities=[ProfilerActivity.CPU]):
        runner.step(entries)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        profiled_s = _step_s(runner, entries)
    averages = profiled.key_averages()
    ops_s = sum(average.self_cpu_time_total for average in averages) / 1e6
    num_ops = sum(average.count for average in averages)
    console.rule(name)
    table = averages.table(sort_by="self_cpu_time_total", row_limit=NUM_ROWS, header=None)
    # Wider than most windows: folded lines would be unreadable.
    console.print(table, soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{name}: {plain_s * 1e3:.2f} ms without the profiler, {profiled_s * 1e3:.2f} ms with it; "
        f"{num_ops} operators take {ops_s * 1e3:.2f} ms of their own. Outside operators (Python, "
        f"and kernels that are none of torch's): {share_outside(ops_s, profiled_s):.0%} with the "
        f"profiler, at least {share_outside(ops_s, plain_s):.0%} without",
        highlight=False,
    )


def _step_s(runner: LocalRunner, entries: Sequence[BatchEntry]) -> float:
    started_s = clock.now_s()
    runner.step(entries)
    return clock.now_s() - started_s


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
