"""A cluster's goodput: the highest rate below which every rate tried attains the target."""

from collections.abc import Callable

from planner.search.bracket import Search, Try, next_rate
from planner.search.results import Found
from planner.search.steady import Judgement
from planner.search.trials import Trials, judged
from planner.sim.spec import Cluster

FIRST_SHARE = 0.5
"""Of a bound, to begin with: below it lies what queues and limits leave of most clusters."""


def find_goodput(trials: Trials, cluster: Cluster, search: Search) -> Found:
    """Of one cluster."""
    return find(lambda rate_per_s: judged(trials, cluster, rate_per_s), search)


def find(try_rate: Callable[[float], Judgement], search: Search) -> Found:
    """Try one rate after the other."""
    judgements: list[Judgement] = []
    tries: list[Try] = []
    while (rate_per_s := next_rate(tries, search)) is not None:
        judgements.append(try_rate(rate_per_s))
        tries.append(Try(rate_per_s, judgements[-1].attains))
    return Found(judgements=tuple(judgements), most_per_s=search.most_rate_per_s)


def below(bound_per_s: float, *, precision: float) -> Search:
    """Down from a rate that cannot attain, or up from 1 per second where none is known."""
    if bound_per_s == float("inf"):
        return Search(first_rate_per_s=1.0, precision=precision)
    return Search(
        first_rate_per_s=FIRST_SHARE * bound_per_s,
        most_rate_per_s=bound_per_s,
        precision=precision,
    )


def published_search(
    num_gpus: int, *, max_per_gpu: float = 5.0, resolution_per_gpu: float = 0.25
) -> Search:
    """As DistServe's published search: bisect rates per GPU from 0 to a given one, until what is
    left between is no more than the resolution. With `trials.published`."""
    return Search(
        first_rate_per_s=max_per_gpu * num_gpus / 2,
        most_rate_per_s=max_per_gpu * num_gpus,
        least_rate_per_s=resolution_per_gpu * num_gpus / 2,
        resolution_per_s=resolution_per_gpu * num_gpus,
        precision=0.0,
    )
