"""What one cluster comes to at one rate: quantiles, the bottleneck, links, money and watts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.slo import Slo
from planner.search.fleet import provisioned_w, usd_per_hour
from planner.search.inputs import RequestClass
from planner.search.results import Bottleneck, Quantiles, Verdict
from planner.search.steady import Judgement, Window
from planner.search.trials import Trials, judged, outcomes, whole
from planner.sim.outcome import Outcome
from planner.sim.spec import Cluster
from policy.step_times import PS_PER_S
from policy.table import Floats, Ints

BUSY_LINK = 0.7
"""Load from which on waiting for the network is what makes the second token late."""
FULL_LINK = 0.95
"""Load from which on it is links whatever else is late."""
WAITING_SHARE = 0.2
"""Of TPOT: so much more of it is spent before the second token than a step takes."""
MAX_RUNS = 12
"""That are looked at closely: a thousand requests each leave 84 above a P99."""
S_PER_HOUR = 3600.0
LIMITS = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """Columns of the counted requests of one run, and what the whole run came to."""

    ttft_s: Floats
    tpot_s: Floats
    first_gap_s: Floats
    gaps: Floats
    request_class: Ints
    scales: Mapping[str, Floats]
    """Of each limit: what was measured over it; infinite for those without an answer."""
    output_tokens_per_s: float
    link_load: float
    average_w: float
    num_preemptions_per_request: float


def verdict(trials: Trials, cluster: Cluster, judgement: Judgement) -> Verdict:
    """Look closely at the first runs of what was judged; again and to the end if that was cut."""
    rate_per_s = judgement.rate_per_s
    if judgement.is_cut:
        judgement = judged(whole(trials), cluster, rate_per_s)
    classes = tuple(trials.workload.classes)
    window = trials.sampling.window
    num_runs = min(judgement.num_runs, MAX_RUNS)
    played = outcomes(trials, cluster, rate_per_s, num_runs)
    runs = [_counted(outcome, classes, window) for outcome in played]
    tokens_per_s = _mean(runs, "output_tokens_per_s")
    return Verdict(
        judgement=judgement,
        ttft_s=quantiles(np.concatenate([run.ttft_s for run in runs])),
        tpot_s=quantiles(np.concatenate([run.tpot_s for run in runs])),
        slo_scale=_needed(runs, classes, LIMITS),
        bottleneck=_bottleneck(runs, classes),
        link_load=_mean(runs, "link_load"),
        num_preemptions_per_request=_mean(runs, "num_preemptions_per_request"),
        usd_per_million_output_tokens=usd_per_million(usd_per_hour(cluster), tokens_per_s),
        average_w=_mean(runs, "average_w"),
        provisioned_w=provisioned_w(cluster),
    )


def usd_per_million(usd_per_hour: float, output_tokens_per_s: float) -> float:
    """Output tokens; infinite where there are none."""
    if output_tokens_per_s <= 0:
        return float("inf")
    return usd_per_hour / S_PER_HOUR / output_tokens_per_s * 1e6


def quantiles(values: Floats) -> Quantiles:
    """Nothing is interpolated; undefined values (NaN) are left out."""
    return Quantiles(
        p50=_quantile(values, 0.5), p90=_quantile(values, 0.9), p99=_quantile(values, 0.99)
    )


def _quantile(values: Floats, share: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, share, method="inverted_cdf")) if known.size else 0.0


def scales(outcome: Outcome, slos: Sequence[Slo]) -> dict[str, Floats]:
    """By limit, of each request: what was measured over its limit; 0 where it has none, infinite
    where the answer did not end."""
    classes, unanswered = outcome.traffic.request_class, outcome.last_token_ps < 0
    found = {}
    for name in LIMITS:
        limits = np.array([getattr(slo, name) or np.inf for slo in slos])[classes]
        # inf / inf: never ended, and no limit; NaN: a one-token answer has no TPOT.
        with np.errstate(invalid="ignore"):
            ratio = np.nan_to_num(getattr(outcome, name) / limits, nan=0.0, posinf=np.inf)
        found[name] = np.where(unanswered, np.inf, ratio)
    return found


def _needed(
    runs: Sequence[_Counted], classes: Sequence[RequestClass], limits: Sequence[str]
) -> float:
    """With these limits so many times as large, every class would just attain its target."""
    request_class = np.concatenate([run.request_class for run in runs])
    columns = [np.concatenate([run.scales[name] for run in runs]) for name in limits]
    worst = np.max(columns, axis=0)
    return max(
        _quantile(worst[request_class == number], each.target)
        for number, each in enumerate(classes)
    )


def _counted(outcome: Outcome, classes: Sequence[RequestClass], window: Window) -> _Counted:
    begin, end = window.bounds(len(outcome.first_token_ps))
    part = slice(begin, end)
    outputs = outcome.traffic.num_output_tokens[part]
    arrivals = outcome.traffic.arrival_ps
    seconds = max(1, int(arrivals[end - 1] - arrivals[begin])) / PS_PER_S
    answered = outcome.last_token_ps[part] >= 0
    found = scales(outcome, [each.slo for each in classes])
    return _Counted(
        ttft_s=outcome.ttft_s[part],
        tpot_s=outcome.tpot_s[part],
        first_gap_s=outcome.first_gap_s[part],
        gaps=(outputs - 1).astype(np.float64),
        request_class=outcome.traffic.request_class[part],
        scales={name: column[part] for name, column in found.items()},
        # Of the requests that arrive in the window: in a steady state as many as it sees.
        output_tokens_per_s=float(outputs[answered].sum()) / seconds,
        link_load=link_load(outcome),
        average_w=average_w(outcome),
        num_preemptions_per_request=outcome.counters.num_preemptions / len(arrivals),
    )


def link_load(outcome: Outcome) -> float:
    """Of the host whose way out, or in, is the fullest: KV that passed it over what could have."""
    cluster, traffic = outcome.cluster, outcome.traffic
    could = cluster.network.host_bytes_per_s * outcome.end_ps / PS_PER_S
    if not 0 < could < np.inf:
        return 0.0
    hosts = np.array([each.host for each in cluster.instances])
    kv_bytes = np.array([cluster.kinds[e.kind].kv_bytes_per_token for e in cluster.instances])
    moved = np.flatnonzero(outcome.handoff_ps >= 0)
    sources, sinks = outcome.prefill_by[moved], outcome.decode_by[moved]
    sizes = kv_bytes[sources] * traffic.num_prompt_tokens[moved]
    # What stays on its host does not pass its network.
    sizes = np.where(hosts[sources] == hosts[sinks], 0.0, sizes)
    ways = (np.bincount(hosts[ends], weights=sizes) for ends in (sources, sinks))
    return max(float(way.max(initial=0.0)) for way in ways) / could


def average_w(outcome: Outcome) -> float:
    """Of all instances, from the first arrival's clock to the last event."""
    if outcome.end_ps <= 0:
        return 0.0
    total = 0.0
    for number, instance in enumerate(outcome.cluster.instances):
        power = outcome.cluster.kinds[instance.kind].power
        prefill = float(outcome.busy_prefill_ps[number]) / outcome.end_ps
        decode = float(outcome.busy_decode_ps[number]) / outcome.end_ps
        # The lanes of a pipelined instance are busy beside each other.
        scale = 1 / max(1.0, prefill + decode)
        prefill, decode = scale * prefill, scale * decode
        total += prefill * power.prefill_w + decode * power.decode_w
        total += (1 - prefill - decode) * power.idle_w
    return total


def _mean(runs: Sequence[_Counted], name: str) -> float:
    return float(np.mean([getattr(run, name) for run in runs]))


def _bottleneck(runs: Sequence[_Counted], classes: Sequence[RequestClass]) -> Bottleneck:
    """Whichever limit is nearest, or missed; for TPOT, what makes answers late.

    A full link or a full decode pool keeps KV, and so prefill, from going on: what comes later in a
    request's life is looked at first.
    """
    if _mean(runs, "link_load") > FULL_LINK:
        return Bottleneck.LINKS
    ttft, tpot = _needed(runs, classes, ["ttft_s"]), _needed(runs, classes, ["tpot_s"])
    if ttft >= tpot and tpot <= 1:
        return Bottleneck.PREFILL
    if _waiting_share(runs) < WAITING_SHARE:
        return Bottleneck.DECODE
    return Bottleneck.LINKS if _mean(runs, "link_load") > BUSY_LINK else Bottleneck.DECODE_ROOM


def _waiting_share(runs: Sequence[_Counted]) -> float:
    """Of all time between first and last tokens, what first gaps take beyond an ordinary gap."""
    waited, spent = 0.0, 0.0
    for run in runs:
        is_known = (run.gaps > 1) & np.isfinite(run.tpot_s)
        span_s = run.tpot_s[is_known] * run.gaps[is_known]
        first_s, others = run.first_gap_s[is_known], run.gaps[is_known] - 1
        ordinary_s = (span_s - first_s) / others
        waited += float(np.maximum(first_s - ordinary_s, 0.0).sum())
        spent += float(span_s.sum())
    return waited / spent if spent else 0.0
