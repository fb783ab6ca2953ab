"""The rules of DistServe's published simulator, as far as parameters of ours can state them.

What they cannot state: its decode workers take another batch at every step, of 50,000 tokens at
most, the rest in turn (`tests/planner/published/rotating.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.member import Role
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.search.fleet import Fleet, Hardware, Rules, cluster_of
from planner.search.inputs import RequestClass, Workload
from planner.search.results import Candidate, Pool
from planner.sim.spec import UNLIMITED, Cluster, Kind
from planner.sim.traffic import Traffic
from planner.workload.presets import load_workload
from policy.distserve import DistServe

HARDWARE = "a100-80g"
MAX_BATCH = 512
"""The published simulator has no limit; memory ends a batch before this does."""
SHAREGPT = "sharegpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneStepMore:
    """Every answer takes one decode step more: the published simulator makes as many steps as
    there are tokens, though prefill has made the first one. TPOT then is its own, too."""

    workload: Workload

    @property
    def classes(self) -> Sequence[RequestClass]:
        """The workload's own."""
        return self.workload.classes

    @property
    def is_random(self) -> bool:
        """As the workload."""
        return self.workload.is_random

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        """As the workload's, one token longer."""
        return one_step_more(self.workload.traffic(rate_per_s, num_requests, seed))


def one_step_more(made: Traffic) -> Traffic:
    """The same requests, one token longer."""
    return made._replace(num_output_tokens=made.num_output_tokens + 1)


def chat(slo: Slo) -> OneStepMore:
    """ShareGPT's lengths at Poisson's moments."""
    return OneStepMore(workload=load_workload(SHAREGPT, slo=slo))


def disaggregated(prefill: ParallelLayout, decode: ParallelLayout) -> Candidate:
    """One instance of each."""
    return Candidate(pools=(_pool(Role.PREFILL, prefill, 1), _pool(Role.DECODE, decode, 1)))


def colocated(layout: ParallelLayout, num: int = 1) -> Candidate:
    """Prompts first, as vLLM did it."""
    return Candidate(pools=(_pool(Role.MIXED, layout, num),))


def _pool(role: Role, layout: ParallelLayout, num: int) -> Pool:
    return Pool(role=role, layout=layout, num=num, hardware=HARDWARE)


def published_fleet(
    model: str, engine: str, *, gpus_per_host: int = 8, num_hosts: int = 4
) -> Fleet:
    """DistServe's testbed, or another one of its GPUs; KV moves at no cost, as published."""
    hardware = Hardware(
        name=HARDWARE,
        source=DistServe(model=model, engine=engine),
        gpus_per_host=gpus_per_host,
        num_hosts=num_hosts,
    )
    rules = Rules(
        max_batch=MAX_BATCH,
        step_tokens=UNLIMITED,
        placement="shortest_queue",
        pairs_at_arrival=False,
    )
    return Fleet(hardware=(hardware,), rules=rules)


def published_cluster(model: str, engine: str, candidate: Candidate) -> Cluster:
    """With what a fleet has no rule for: memory of prefill instances never runs out (the published
    back-pressure cannot fire), and L_m is an instance's capacity."""
    cluster = cluster_of(published_fleet(model, engine), candidate)
    pairs = zip(cluster.kinds, candidate.pools, strict=True)
    return replace(cluster, kinds=tuple(_published(kind, pool.role) for kind, pool in pairs))


def _published(kind: Kind, role: Role) -> Kind:
    capacity_tokens = UNLIMITED if role is Role.PREFILL else kind.capacity_tokens
    return replace(kind, step_tokens=kind.capacity_tokens, capacity_tokens=capacity_tokens)
