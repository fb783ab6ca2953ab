"""Recent requests that are made up: bursts as they are wanted, lengths as they are wanted."""

import numpy as np

from planner.online.window import Recent
from policy.table import Bools, Floats, Ints


def moments(
    rng: np.random.Generator, rate_per_s: float, span_s: float, *, burst_s: float, idle: float
) -> Floats:
    """Times with requests and times without take turns, each as long as chance will have it:
    `burst_s` seconds with, on average, and `idle` times as long without."""
    at_s, now_s = list[Floats](), 0.0
    while now_s < span_s:
        long_s = rng.exponential(burst_s)
        num = rng.poisson(rate_per_s * (1 + idle) * long_s)
        at_s.append(now_s + np.sort(rng.uniform(0.0, long_s, num)))
        now_s += long_s + rng.exponential(idle * burst_s if idle else 0.0)
    every = np.concatenate(at_s)
    return every[every < span_s]


def lengths(rng: np.random.Generator, mean: float, num: int) -> Ints:
    """Lognormal, with the spread of published traces."""
    return np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, num)).astype(np.int64)


def recent(
    at_s: Floats,
    prompts: Ints | int,
    outputs: Ints | int,
    *,
    span_s: float,
    begin_s: float = 0.0,
    hits: int = 0,
    is_ok: Bools | None = None,
) -> Recent:
    """Of requests that all took 0.1 s to the first token, and 10 ms to each further one."""
    num = len(at_s)
    return Recent(
        begin_s=begin_s,
        end_s=begin_s + span_s,
        at_s=begin_s + at_s,
        num_prompt_tokens=np.zeros(num, dtype=np.int64) + prompts,
        num_hit_tokens=np.full(num, hits, dtype=np.int64),
        num_output_tokens=np.zeros(num, dtype=np.int64) + outputs,
        ttft_s=np.full(num, 0.1),
        tpot_s=np.full(num, 0.01),
        is_ok=np.ones(num, dtype=np.bool_) if is_ok is None else is_ok,
    )


def even(rate_per_s: float, span_s: float) -> Floats:
    """One after the other."""
    return np.linspace(0.5, int(rate_per_s * span_s) - 0.5, int(rate_per_s * span_s)) / rate_per_s
