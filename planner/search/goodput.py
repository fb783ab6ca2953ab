"""A cluster's goodput: the highest rate below which every rate tried attains the target."""

from collections.abc import Callable, Iterator, Sequence

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


def find(
    try_rate: Callable[[float], Judgement], search: Search, *, max_widenings: int = 0
) -> Found:
    """Try one rate after the other; then, at most so often on either side, rates further away from
    the limit, until chance does not explain what is said of them."""
    judgements: list[Judgement] = []
    tries: list[Try] = []
    while (rate_per_s := next_rate(tries, search)) is not None:
        judgements.append(try_rate(rate_per_s))
        tries.append(Try(rate_per_s, judgements[-1].attains))
    for factor in _widenings(search.precision, max_widenings):
        found = _found(judgements, search)
        if found.low_per_s and found.sure_low_per_s < (1 - factor) * found.low_per_s:
            judgements.append(try_rate((1 - factor) * found.low_per_s))
    for factor in _widenings(search.precision, max_widenings):
        found = _found(judgements, search)
        rate_per_s = (1 + factor) * found.high_per_s
        if rate_per_s < min(found.sure_high_per_s, search.most_rate_per_s):
            judgements.append(try_rate(rate_per_s))
    return _found(judgements, search)


def _found(judgements: Sequence[Judgement], search: Search) -> Found:
    return Found(judgements=tuple(judgements), most_per_s=search.most_rate_per_s)


def _widenings(precision: float, num: int) -> Iterator[float]:
    return (precision * 2**step for step in range(num))


def below(bound_per_s: float, *, precision: float) -> Search:
    """Down from a rate that cannot attain, or up from 1 per second where none is known."""
    if bound_per_s == float("inf"):
        return Search(first_rate_per_s=1.0, precision=precision)
    return Search(
        first_rate_per_s=FIRST_SHARE * bound_per_s,
        most_rate_per_s=bound_per_s,
        precision=precision,
    )
