"""Rates that no cluster of these instances can attain, from what every served request costs.

Work is conserved: an instance has one second per second. Whoever keeps a limit has been served, so
its share of steps, at the best batching there is, has been spent. Nothing is assumed of queues, so
a bound never excludes what a simulation accepts; it may be far above it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from core.member import Role
from planner.search.costs import Servers, Work, alone_s, decode_s, prefill_s, servers_of, work_of
from planner.search.inputs import RequestClass
from planner.sim.spec import MIXED_POOL, Cluster
from planner.sim.traffic import Traffic
from policy.table import Floats

PRICES = (0.0, *(10.0**exponent for exponent in np.arange(-4.0, 1.01, 0.25)))
"""λ of `costs.decode_s`; any gives a bound, the lowest is taken."""
SAMPLING = 3.0
"""Standard errors that the mean of a sample is taken to be too high by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Requests per second, each infinite where it says nothing."""

    prefill_per_s: float
    decode_per_s: float
    room_per_s: float
    """KV memory of those who write answers."""
    together_per_s: float
    """Prefill and decode of instances that do both."""
    links_per_s: float

    @property
    def most_per_s(self) -> float:
        """No more than this can attain."""
        return min(rate for _, rate in self._named)

    @property
    def binding(self) -> str:
        """Which one that is, for people."""
        return min(self._named, key=lambda named: named[1])[0]

    @property
    def _named(self) -> tuple[tuple[str, float], ...]:
        return (
            ("prefill compute", self.prefill_per_s),
            ("decode compute", self.decode_per_s),
            ("decode memory", self.room_per_s),
            ("prefill and decode compute", self.together_per_s),
            ("links", self.links_per_s),
        )


def bounds(cluster: Cluster, traffic: Traffic, classes: Sequence[RequestClass]) -> Bounds:
    """From a sample of the requests; what of it may miss is taken to cost nothing at all."""
    work = work_of(cluster, traffic, classes)
    roles = {role: servers_of(cluster, role) for role in (Role.PREFILL, Role.DECODE, Role.MIXED)}
    if cluster.placement == MIXED_POOL or any(change.role for change in cluster.changes):
        everyone = [each for servers in roles.values() for each in servers]
        roles = {Role.PREFILL: [], Role.DECODE: [], Role.MIXED: everyone}
    both = roles[Role.MIXED]
    readers, writers = roles[Role.PREFILL] + both, roles[Role.DECODE] + both
    reading_s = _least(prefill_s(each, work) for each in readers)
    prices = _prices(work)
    writing_s = [_least(decode_s(each, work, price) for each in writers) for price in prices]
    together_per_s = _rate(_num(both), [reading_s + each for each in writing_s], work)
    return Bounds(
        prefill_per_s=_rate(_num(readers), [reading_s], work),
        decode_per_s=_rate(_num(writers), writing_s, work),
        room_per_s=_room_per_s(writers, work),
        together_per_s=together_per_s if readers == writers else np.inf,
        links_per_s=_links_per_s(cluster, work),
    )


def _num(servers: Sequence[Servers]) -> int:
    return sum(each.num for each in servers)


def _least(costs: Iterable[Floats]) -> Floats:
    """Of each request, wherever it is cheapest; 0 where nobody is there to say."""
    columns = list(costs)
    return np.min(columns, axis=0) if columns else np.zeros(1)


def _rate(num: int, costs_s: Sequence[Floats], work: Work) -> float:
    """The lowest bound that any of these columns of seconds gives."""
    least = max(_served_mean(cost_s, work) for cost_s in costs_s)
    return num / least if num and least > 0 else np.inf


def _served_mean(costs: Floats, work: Work) -> float:
    """Per request that arrives: of those that must keep their limits the cheapest, and whatever
    makes it less."""
    if len(costs) != len(work.gaps):
        return 0.0
    total, noise = 0.0, 0.0
    for number, target in enumerate(work.targets):
        own = np.sort(costs[work.request_class == number])
        must = math.ceil(target * len(own))
        counted = np.where(np.arange(len(own)) < must, own, np.minimum(own, 0.0))
        total += float(counted.sum())
        noise += float(counted.var() * len(own)) if len(own) else 0.0
    num = len(costs)
    return (total - SAMPLING * math.sqrt(noise)) / num


def _room_per_s(writers: Sequence[Servers], work: Work) -> float:
    """Each answer holds its prompt's KV at least as long as its steps take when it is alone."""
    if not writers:
        return np.inf
    tokens = sum(
        each.num * each.kind.capacity_tokens / each.kind.times.num_stages for each in writers
    )
    least_s = min(alone_s(each.kind) for each in writers)
    served = _served_mean(least_s * (work.gaps * work.num_prompt_tokens).astype(np.float64), work)
    return tokens / served if served > 0 else np.inf


def _prices(work: Work) -> tuple[float, ...]:
    """Where some requests have no limit, nobody pays: steps are shared by all."""
    return PRICES if np.isfinite(work.limit_s[work.gaps > 0]).all() else PRICES[:1]


def _links_per_s(cluster: Cluster, work: Work) -> float:
    """KV that must leave the hosts of prefill instances, or move within them."""
    network = cluster.network
    by_role = {role: {e.host for e in cluster.instances if e.role is role} for role in Role}
    if by_role[Role.MIXED] or not network.is_shared:
        return np.inf
    out, shared = by_role[Role.PREFILL], by_role[Role.PREFILL] & by_role[Role.DECODE]
    within = len(shared) * network.local_bytes_per_s
    could = min(len(out), len(by_role[Role.DECODE])) * network.host_bytes_per_s + within
    kv_bytes = min(kind.kv_bytes_per_token for kind in cluster.kinds)
    moved = kv_bytes * np.where(work.gaps > 0, work.num_prompt_tokens, 0).astype(np.float64)
    served = _served_mean(moved, work)
    return could / served if served > 0 else np.inf
