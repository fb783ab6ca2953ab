"""Splitwise's nine SLOs (Table VI): quantiles of slowdowns against an unloaded reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from core.slo import Slo
from planner.search.judges import Criterion
from planner.sim.outcome import Outcome
from planner.sim.traffic import Traffic
from policy.splitwise import Curves, curve_at
from policy.step_times import PS_PER_S, StepTimes, decode_ps, prefill_s
from policy.table import Bools, Floats, Ints

QUANTILES = (0.5, 0.9, 0.99)
TABLE_VI = {
    "ttft": (2.0, 3.0, 6.0),
    "tbt": (1.25, 1.5, 5.0),
    "e2e": (1.25, 1.5, 5.0),
}
"""Times the reference, at each of QUANTILES."""


class Unloaded(NamedTuple):
    """What requests take where they are alone; columns of seconds."""

    ttft_s: Floats
    tbt_s: Floats
    """Per output token, the first one counted, too: (E2E − TTFT) / tokens, as Splitwise has it."""
    e2e_s: Floats


class Reference(Protocol):
    """Machines that slowdowns are counted against."""

    def __call__(self, num_prompt_tokens: Ints, num_output_tokens: Ints, /) -> Unloaded:
        """Of each request."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One instance that serves one request after the other."""

    times: StepTimes

    def __call__(self, num_prompt_tokens: Ints, num_output_tokens: Ints) -> Unloaded:
        """By its own step times, the growing context included."""
        prompts, inverse = np.unique(num_prompt_tokens, return_inverse=True)
        ttft_s = np.array([prefill_s(self.times, p, p * (p + 1) / 2) for p in prompts])[inverse]
        longest = int((num_prompt_tokens + num_output_tokens).max())
        steps = np.array([decode_ps(self.times, 1, c) for c in range(longest + 1)])
        until = np.cumsum(steps) / PS_PER_S
        # The first token is prefill's; each step's context holds what came before it.
        span_s = until[num_prompt_tokens + num_output_tokens - 1] - until[num_prompt_tokens]
        return Unloaded(ttft_s=ttft_s, tbt_s=span_s / num_output_tokens, e2e_s=ttft_s + span_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """As Splitwise's published evaluation has it: a token takes what a batch of one such prompt
    was measured to take per token."""

    curves: Curves

    def __call__(self, num_prompt_tokens: Ints, num_output_tokens: Ints) -> Unloaded:
        """By look-up; the whole is the prompt and a token less than there are."""
        prompts = num_prompt_tokens.astype(np.float64)
        ttft_s, tbt_s = (
            curve_at(self.curves.prefill, prompts),
            curve_at(self.curves.decode, prompts),
        )
        e2e_s = ttft_s + tbt_s * (num_output_tokens - 1)
        return Unloaded(ttft_s=ttft_s, tbt_s=tbt_s, e2e_s=e2e_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdowns:
    """All nine must hold; a `Judge`. A request that never ended is slowed down without bound."""

    reference: Reference

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """By metric, then quantile."""
        return tuple(
            Criterion(name=f"{metric} P{100 * quantile:g} {limit:g}x", target=quantile)
            for metric, limits in TABLE_VI.items()
            for quantile, limit in zip(QUANTILES, limits, strict=True)
        )

    @property
    def slos(self) -> tuple[Slo, ...]:
        """Limits differ from request to request: no run is ended early."""
        return ()

    def concerns(self, traffic: Traffic) -> Sequence[Bools]:
        """All requests."""
        return [np.ones(len(traffic.arrival_ps), dtype=np.bool_)] * len(self.criteria)

    def kept(self, outcome: Outcome) -> Sequence[Bools]:
        """By criterion."""
        slow = slowdowns(outcome, self.reference)
        return [slow[metric] <= limit for metric, limits in TABLE_VI.items() for limit in limits]


def slowdowns(outcome: Outcome, reference: Reference) -> dict[str, Floats]:
    """Of each request, by metric of TABLE_VI."""
    traffic = outcome.traffic
    alone = reference(traffic.num_prompt_tokens, traffic.num_output_tokens)
    ttft_s, e2e_s = outcome.ttft_s, outcome.e2e_s
    is_whole = np.isfinite(e2e_s)
    tbt_s = np.full(len(e2e_s), np.inf)
    spans_s = e2e_s[is_whole] - ttft_s[is_whole]
    tbt_s[is_whole] = spans_s / traffic.num_output_tokens[is_whole]
    return {
        "ttft": ttft_s / alone.ttft_s,
        # One-token answers have no gap, here or there.
        "tbt": tbt_s / np.maximum(alone.tbt_s, 1 / PS_PER_S),
        "e2e": e2e_s / alone.e2e_s,
    }
