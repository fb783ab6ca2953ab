"""What a simulation comes to: moments of each request, and what each instance did."""

from dataclasses import dataclass

import numpy as np

from core.slo import Slo
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic
from policy.step_times import PS_PER_S
from policy.table import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How the simulator got through."""

    num_events: int
    num_leaps: int
    """Of more than one step."""
    num_leapt_steps: int
    num_single_steps: int
    num_preemptions: int
    num_transfers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Columns by request; -1 where a moment never came (refused, or the run was ended)."""

    traffic: Traffic
    cluster: Cluster
    first_token_ps: Ints
    second_token_ps: Ints
    last_token_ps: Ints
    prefill_start_ps: Ints
    """When its (first) prefill step began."""
    handoff_ps: Ints
    """When its KV had arrived; -1 where none moved."""
    prefill_by: Ints
    """Instance; -1: refused."""
    decode_by: Ints
    num_hit_tokens: Ints
    is_refused: Bools
    end_ps: int
    """Of the last event."""
    busy_prefill_ps: Ints
    """By instance: steps with prompts."""
    busy_decode_ps: Ints
    """By instance: steps of answers alone."""
    moved_bytes: Floats
    """By host: KV that left it."""
    counters: Counters

    @property
    def ttft_s(self) -> Floats:
        """Infinite where there is none."""
        return _span_s(self.first_token_ps, self.traffic.arrival_ps)

    @property
    def e2e_s(self) -> Floats:
        """Infinite where the answer did not end."""
        return _span_s(self.last_token_ps, self.traffic.arrival_ps)

    @property
    def tpot_s(self) -> Floats:
        """(Last − first token) / (tokens − 1); NaN for one-token answers, as in `core.slo`."""
        gaps = self.traffic.num_output_tokens - 1
        span_s = _span_s(self.last_token_ps, self.first_token_ps)
        return np.where(gaps > 0, span_s / np.maximum(gaps, 1), np.nan)

    @property
    def first_gap_s(self) -> Floats:
        """First → second token; infinite where there is none."""
        return _span_s(self.second_token_ps, self.first_token_ps)

    def met(self, slos: tuple[Slo, ...]) -> Bools:
        """Which requests keep all limits of their class: the verdicts of `core.slo.meets`."""
        classes = self.traffic.request_class
        kept = self.last_token_ps >= 0
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            limits = np.array([_limit(getattr(slo, name)) for slo in slos])[classes]
            values = getattr(self, name)
            kept &= ~(values > limits)  # a TPOT that is undefined keeps any limit
        return kept


def _limit(limit_s: float | None) -> float:
    return np.inf if limit_s is None else limit_s


def _span_s(end_ps: Ints, start_ps: Ints) -> Floats:
    return np.where(end_ps >= 0, (end_ps - start_ps) / PS_PER_S, np.inf)
