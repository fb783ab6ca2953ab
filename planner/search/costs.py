"""What each request costs the instances that serve it, at least: seconds at the best batching.

Decode, with a limit on TPOT: a step of `a` answers that keep their limits takes t ≥ base(a), and
they all spend it, a·t together, out of what their limits allow. For any price λ of a second that an
answer spends, instance seconds are at least Σ(t + λ·a·t) − λ·Σ(limit · tokens), and so at least
what `decode_s` says of each request (weak duality).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.member import Role
from planner.search.inputs import RequestClass
from planner.sim.spec import Cluster, Kind, Scheduling
from planner.sim.traffic import Traffic
from policy.step_times import NEVER, PS_PER_S, curve_s
from policy.table import Floats, Ints


class Work(NamedTuple):
    """What a sample of requests asks for; columns."""

    num_prompt_tokens: Ints
    num_hit_tokens: Ints
    """At most."""
    gaps: Ints
    """Steps of answers that each takes part in."""
    limit_s: Floats
    """On the mean of them; infinite: none."""
    request_class: Ints
    targets: tuple[float, ...]


class Servers(NamedTuple):
    """Instances that are alike, as executors that do one step at a time."""

    kind: Kind
    reads_in_stages: bool
    """Prompts pass its pipeline one behind the other; else its lanes do whole steps."""
    num: int


def work_of(cluster: Cluster, traffic: Traffic, classes: Sequence[RequestClass]) -> Work:
    """Of a sample, with limits and hits as generous as they can be."""
    gaps = traffic.num_output_tokens - 1
    slos = [each.slo for each in classes]
    number = traffic.request_class
    tpot_s = np.array([slo.tpot_s or np.inf for slo in slos])[number]
    e2e_s = np.array([slo.e2e_s or np.inf for slo in slos])[number]
    hits = traffic.num_cached_tokens
    if any(kind.cache_tokens for kind in cluster.kinds):
        hits = np.maximum(hits, most_hits(traffic))
    return Work(
        num_prompt_tokens=traffic.num_prompt_tokens,
        num_hit_tokens=np.clip(hits, 0, traffic.num_prompt_tokens - 1),
        gaps=gaps,
        limit_s=np.minimum(tpot_s, e2e_s / np.maximum(gaps, 1)),
        request_class=number,
        targets=tuple(each.target for each in classes),
    )


def most_hits(traffic: Traffic) -> Ints:
    """Leading tokens of each prompt that some earlier one has had, too."""
    sizes = np.diff(traffic.first_block)
    hits = np.zeros(len(sizes), dtype=np.int64)
    if not len(traffic.blocks):
        return hits
    _, firsts = np.unique(traffic.blocks, return_index=True)
    is_new = np.zeros(len(traffic.blocks) + 1, dtype=np.bool_)
    is_new[firsts] = True
    is_new[-1] = True  # ends the search for what follows the last request
    places = np.flatnonzero(is_new)
    begins = traffic.first_block[:-1]
    leading = np.minimum(places[np.searchsorted(places, begins)] - begins, sizes)
    found: Ints = np.minimum(leading * traffic.block_tokens, traffic.num_prompt_tokens)
    return found


def servers_of(cluster: Cluster, role: Role) -> list[Servers]:
    """Those of a role, by kind."""
    kinds = [each.kind for each in cluster.instances if each.role is role]
    found = []
    for number in sorted(set(kinds)):
        kind = cluster.kinds[number]
        in_stages = role is Role.PREFILL
        lanes = 1 if in_stages else kind.times.num_stages
        num = kinds.count(number) * lanes
        found.append(Servers(kind=kind, reads_in_stages=in_stages, num=num))
    return found


def prefill_s(servers: Servers, work: Work) -> Floats:
    """Seconds of each prompt's share of steps as large as is best."""
    times, fresh = servers.kind.times, work.num_prompt_tokens - work.num_hit_tokens
    pairs = fresh * work.num_hit_tokens + fresh * (fresh + 1) / 2
    per_token_s = _per_token_s(servers, _most_step_tokens(servers.kind, work))
    per_pair_s = times.per_pair_s
    if servers.reads_in_stages:
        per_pair_s /= times.num_stages
    # Joined steps take so many times as long, or as short.
    scale = min(1.0, times.mixed_factor) if times.mixed_factor > 0 else 1.0
    return scale * (per_token_s * fresh + per_pair_s * pairs)


def _most_step_tokens(kind: Kind, work: Work) -> float:
    """A prompt that is longer than a step runs alone, one that was put off with what it had."""
    longest = int((work.num_prompt_tokens + work.gaps).max())
    return max(longest, min(kind.step_tokens, kind.max_prompts * longest)) + kind.max_batch


def _per_token_s(servers: Servers, most: float) -> float:
    """Least seconds per prompt token of any step: at a knot, or at either end."""
    times = servers.kind.times
    knots = times.prefill_tokens[(times.prefill_tokens > 1) & (times.prefill_tokens < most)]
    tokens = np.array([1.0, *knots, most])
    curve = np.array([curve_s(times, each) for each in tokens])
    first_s = times.first_s + times.first_per_token_s * tokens
    if servers.reads_in_stages:
        step_s = curve / times.num_stages + times.stage_s + first_s
    else:
        step_s = curve + times.num_stages * times.stage_s + first_s
    return max(0.0, float((step_s / tokens).min()))


def decode_s(servers: Servers, work: Work, price: float) -> Floats:
    """Seconds of each answer's share of steps in the batch that is best at this price."""
    base_s, slope_s = _line(servers.kind)
    base_s = base_s[: _most_answers(servers, work)]
    answers = np.arange(1, len(base_s) + 1)
    per_gap_s = float(((1.0 + price * answers) * base_s / answers).min())
    if _counts_as_prompt(servers.kind):
        per_gap_s, slope_s = min(per_gap_s, _joined_token_s(servers, work)), 0.0
    contexts = work.gaps * work.num_prompt_tokens + work.gaps * (work.gaps + 1) / 2
    # Without a price no limit counts, nor has one that of one-token answers.
    limits_s = np.where(work.gaps > 0, work.limit_s, 0.0) if price else np.zeros(len(work.gaps))
    return work.gaps * (per_gap_s - price * limits_s) + slope_s * contexts


def _counts_as_prompt(kind: Kind) -> bool:
    """An answer in a step that holds prompts costs what a prompt token does, context or not."""
    return kind.scheduling is not Scheduling.EXCLUSIVE and kind.times.mixed_factor > 0


def _joined_token_s(servers: Servers, work: Work) -> float:
    most = _most_step_tokens(servers.kind, work)
    return servers.kind.times.mixed_factor * _per_token_s(servers, most)


def _line(kind: Kind) -> tuple[Floats, float]:
    """Below decode's tables: seconds of 1, 2, ... answers without context, rising, and seconds per
    context token."""
    times = kind.times
    rows = slice(1, kind.max_batch + 1)
    starts, bases = times.decode_starts[rows], times.decode_base_ps[rows]
    slopes, used = times.decode_slope_ps[rows], starts < NEVER
    slope = int(slopes[used].min())
    at_start = bases + (slopes - slope) * np.where(used, starts, 0).astype(np.float64)
    base = np.where(used, at_start, np.inf).min(axis=1) / PS_PER_S
    if kind.scheduling is not Scheduling.EXCLUSIVE:
        base = base - times.shared_s  # prompts in the same step pay for what is paid once
    rising = np.minimum.accumulate(base[::-1])[::-1]
    return np.maximum(rising, 0.0), max(0, slope) / PS_PER_S


def _most_answers(servers: Servers, work: Work) -> int:
    """In one step, as far as there is room for the shortest."""
    written = work.num_prompt_tokens[work.gaps > 0]
    if not written.size:
        return servers.kind.max_batch
    lanes = servers.kind.times.num_stages
    room = servers.kind.capacity_tokens // lanes // (int(written.min()) + 1)
    return int(np.clip(room, 1, servers.kind.max_batch))


def alone_s(kind: Kind) -> float:
    """A step of answers at its shortest."""
    base_s, _ = _line(kind)
    return 0.0 if _counts_as_prompt(kind) else float(base_s[0])
