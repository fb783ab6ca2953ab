"""What traffic looks like: how fast it comes, and how long prompts and answers are."""

from dataclasses import dataclass

import numpy as np

from planner.sim.traffic import Traffic
from policy.step_times import PS_PER_S
from policy.table import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of numbers of tokens; quantiles are interpolated linearly, as traces' papers have them."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of traffic."""

    num_requests: int
    span_s: float
    """From the first to the last arrival."""
    rate_per_s: float
    """One over the mean gap between two arrivals; 0 where there is no gap."""
    gap_variation: float
    """Coefficient of variation of the gaps: 0 even, 1 Poisson, above 1 in bursts."""
    prompt: Spread
    output: Spread


def summarise(traffic: Traffic) -> Summary:
    """Of at least one request."""
    gaps_s = np.diff(traffic.arrival_ps) / PS_PER_S
    span_s = float(gaps_s.sum())
    return Summary(
        num_requests=len(traffic.arrival_ps),
        span_s=span_s,
        rate_per_s=len(gaps_s) / span_s if span_s else 0.0,
        gap_variation=float(gaps_s.std() / gaps_s.mean()) if span_s else 0.0,
        prompt=_spread(traffic.num_prompt_tokens),
        output=_spread(traffic.num_output_tokens),
    )


def _spread(num_tokens: Ints) -> Spread:
    p50, p90, p99 = map(float, np.quantile(num_tokens, (0.5, 0.9, 0.99)))
    return Spread(
        mean=float(num_tokens.mean()), p50=p50, p90=p90, p99=p99, max=int(num_tokens.max())
    )
