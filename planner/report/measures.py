"""What runs of one cluster come to, in the figures that people ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from core.member import Role
from planner.search.fleet import provisioned_w, usd_per_hour
from planner.search.inputs import RequestClass
from planner.search.judges import Joint
from planner.search.results import Quantiles
from planner.search.steady import Judgement, Window, judgement, sample
from planner.search.verdicts import average_w, link_load, quantiles, usd_per_million
from planner.sim.outcome import Counters, Outcome
from policy.step_times import PS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Shares of an instance's time, 0 to 1, the mean over those of one role."""

    prefill: float
    """In steps with prompts."""
    decode: float
    """In steps of answers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Of the counted requests of all runs, and of whole runs where requests do not matter."""

    judgement: Judgement
    ttft_s: Quantiles
    """Infinite where so many were refused."""
    tpot_s: Quantiles
    e2e_s: Quantiles
    first_gap_s: Quantiles
    num_requests: int
    """Of all runs, counted or not."""
    num_refused: int
    output_tokens_per_s: float
    link_load: float
    """Of the busiest host's way out, 0 to 1."""
    average_w: float
    provisioned_w: float
    usd_per_hour: float
    usd_per_million_output_tokens: float
    busy: dict[Role, Busy]
    counters: Counters
    """Summed."""


def measures(
    outcomes: Sequence[Outcome], classes: Sequence[RequestClass], window: Window, growth: float
) -> Measures:
    """Of whole runs of one cluster at one rate; `growth` as in `trials.Sampling`."""
    judge = Joint(classes=tuple(classes))
    cluster = outcomes[0].cluster
    num = len(outcomes[0].traffic.arrival_ps)
    tokens_per_s = float(np.mean([_tokens_per_s(each) for each in outcomes]))
    hourly = usd_per_hour(cluster)
    return Measures(
        judgement=judgement(
            _rate_per_s(outcomes),
            judge,
            [sample(each, judge, window) for each in outcomes],
            num_requests=num,
            growth=growth,
        ),
        ttft_s=_quantiles(outcomes, "ttft_s", window),
        tpot_s=_quantiles(outcomes, "tpot_s", window),
        e2e_s=_quantiles(outcomes, "e2e_s", window),
        first_gap_s=_quantiles(outcomes, "first_gap_s", window),
        num_requests=num * len(outcomes),
        num_refused=sum(int(each.is_refused.sum()) for each in outcomes),
        output_tokens_per_s=tokens_per_s,
        link_load=float(np.mean([link_load(each) for each in outcomes])),
        average_w=float(np.mean([average_w(each) for each in outcomes])),
        provisioned_w=provisioned_w(cluster),
        usd_per_hour=hourly,
        usd_per_million_output_tokens=usd_per_million(hourly, tokens_per_s),
        busy=_busy(outcomes),
        counters=_summed([each.counters for each in outcomes]),
    )


def _quantiles(outcomes: Sequence[Outcome], name: str, window: Window) -> Quantiles:
    columns = []
    for outcome in outcomes:
        begin, end = window.bounds(len(outcome.first_token_ps))
        values = getattr(outcome, name)[begin:end]
        if name == "first_gap_s":
            # One-token answers have no second token.
            answers = outcome.traffic.num_output_tokens[begin:end] > 1
            values = values[answers]
        columns.append(values)
    return quantiles(np.concatenate(columns))


def _rate_per_s(outcomes: Sequence[Outcome]) -> float:
    """As it came, over all runs."""
    spans_s = sum(int(o.traffic.arrival_ps[-1] - o.traffic.arrival_ps[0]) for o in outcomes)
    num_gaps = sum(len(o.traffic.arrival_ps) - 1 for o in outcomes)
    return num_gaps / (spans_s / PS_PER_S) if spans_s else 0.0


def _tokens_per_s(outcome: Outcome) -> float:
    """Of the whole run, from its first arrival to its end."""
    answered = outcome.last_token_ps >= 0
    span_ps = outcome.end_ps - int(outcome.traffic.arrival_ps[0])
    tokens = int(outcome.traffic.num_output_tokens[answered].sum())
    return tokens / (span_ps / PS_PER_S) if span_ps > 0 else 0.0


def _busy(outcomes: Sequence[Outcome]) -> dict[Role, Busy]:
    instances = outcomes[0].cluster.instances
    found = {}
    for role in Role:
        of_role = [number for number, each in enumerate(instances) if each.role is role]
        if of_role:
            found[role] = Busy(
                prefill=_share(outcomes, "busy_prefill_ps", of_role),
                decode=_share(outcomes, "busy_decode_ps", of_role),
            )
    return found


def _share(outcomes: Sequence[Outcome], name: str, numbers: Sequence[int]) -> float:
    shares = [
        float(getattr(each, name)[numbers].mean()) / each.end_ps for each in outcomes if each.end_ps
    ]
    return float(np.mean(shares)) if shares else 0.0


def _summed(counters: Sequence[Counters]) -> Counters:
    totals = {
        each.name: sum(getattr(one, each.name) for one in counters) for each in fields(Counters)
    }
    return Counters(**totals)
