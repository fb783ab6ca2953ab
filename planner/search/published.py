"""DistServe's published search: one run per rate, marginal quantiles, bisected rates per GPU.

Only to compare with its figures: a run of 300 requests does not see that a backlog grows, so what
it finds falls as the number of requests rises. `units_goodput` with `Trials` of `Joint` and the
default `Sampling` asks the same units what they attain in steady state.
"""

from collections.abc import Callable, Sequence
from functools import partial

from planner.search.bounds import bounds
from planner.search.bracket import Search
from planner.search.fleet import Fleet, cluster_of
from planner.search.goodput import below, find_goodput
from planner.search.inputs import Simulate, Workload
from planner.search.judges import Marginal
from planner.search.parallel import Workers
from planner.search.results import Candidate, Found
from planner.search.setting import SAMPLE
from planner.search.trials import Trials, published
from planner.sim.spec import Cluster

MAX_PER_GPU = 5.0
"""Requests per second and GPU that its quick start begins with..."""
RESOLUTION_PER_GPU = 0.25
"""...and between which two rates it ends."""
NUM_REQUESTS = 300

Searches = Callable[[Cluster, int], Search]
"""For a cluster of so many GPUs: which rates."""


def published_trials(
    simulate: Simulate, workload: Workload, num_requests: int = NUM_REQUESTS
) -> Trials:
    """P90 of TTFT and P90 of TPOT, each by itself, for the limits and target of the first class."""
    first, num_classes = workload.classes[0], len(workload.classes)
    return Trials(
        simulate=simulate,
        workload=workload,
        judge=Marginal(slo=first.slo, target=first.target, num_classes=num_classes),
        sampling=published(num_requests),
    )


def published_rates(
    _: Cluster,
    num_gpus: int,
    *,
    max_per_gpu: float = MAX_PER_GPU,
    resolution_per_gpu: float = RESOLUTION_PER_GPU,
) -> Search:
    """Bisect from 0 to a given rate, until what is left between is no more than the resolution."""
    return Search(
        first_rate_per_s=max_per_gpu * num_gpus / 2,
        most_rate_per_s=max_per_gpu * num_gpus,
        least_rate_per_s=resolution_per_gpu * num_gpus / 2,
        resolution_per_s=resolution_per_gpu * num_gpus,
        precision=0.0,
    )


def steady_rates(trials: Trials, precision: float) -> Searches:
    """Down from what work conservation allows."""
    sample, classes = trials.workload.traffic(1.0, SAMPLE, 0), trials.workload.classes

    def rates(cluster: Cluster, _: int) -> Search:
        most_per_s = bounds(cluster, sample, classes).most_per_s
        return below(most_per_s, precision=precision)

    return rates


def units_goodput(
    trials: Trials, fleet: Fleet, units: Sequence[Candidate], rates: Searches, workers: Workers
) -> list[tuple[Candidate, Found]]:
    """Of each unit; most per GPU first, the earlier of equals."""
    found = workers.each("units", partial(_goodput, trials, fleet, rates), units)
    pairs = list(zip(units, found, strict=True))
    return sorted(pairs, key=lambda pair: -pair[1].low_per_s / pair[0].num_gpus)


def _goodput(trials: Trials, fleet: Fleet, rates: Searches, unit: Candidate) -> Found:
    cluster = cluster_of(fleet, unit)
    return find_goodput(trials, cluster, rates(cluster, unit.num_gpus))
