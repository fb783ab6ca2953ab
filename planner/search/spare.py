"""What a cluster has to survive: with any one instance, or any one host, gone it still attains."""

from collections.abc import Iterator
from enum import StrEnum

from core.member import Role
from planner.search.fleet import losses, without
from planner.search.intervals import Interval
from planner.search.steady import Judged, Judgement
from planner.search.trials import Trials, judged
from planner.sim.spec import Cluster


class Spare(StrEnum):
    """N + 1 of what."""

    NONE = "none"
    INSTANCE = "instance"
    HOST = "host"


def reduced(cluster: Cluster, spare: Spare) -> Iterator[Cluster | None]:
    """What is left after each different loss; None where one phase has nobody left."""
    if spare is Spare.HOST:
        yield from (without(cluster, lost) for lost in losses(cluster))
    elif spare is Spare.INSTANCE:
        seen = set()
        for number, each in enumerate(cluster.instances):
            if (each.kind, each.role) not in seen:
                seen.add((each.kind, each.role))
                yield without(cluster, (number,))


def judged_with(trials: Trials, cluster: Cluster, rate_per_s: float, spare: Spare) -> Judgement:
    """Of the whole cluster and of what each loss leaves; the first that does not attain, or the
    one with the least margin."""
    verdict = judged(trials, cluster, rate_per_s)
    for left in reduced(cluster, spare):
        if not verdict.attains:
            break
        if left is None:
            return impossible(trials, rate_per_s, _scarce(cluster))
        other = judged(trials, left, rate_per_s)
        if not other.attains or other.worst.margin < verdict.worst.margin:
            verdict = other
    return verdict


def _scarce(cluster: Cluster) -> str:
    """The limit of the phase that the fewest serve: a loss leaves nobody of it."""
    roles = [each.role for each in cluster.instances]
    return "ttft" if roles.count(Role.PREFILL) <= roles.count(Role.DECODE) else "tpot"


def impossible(trials: Trials, rate_per_s: float, missing: str = "") -> Judgement:
    """Without a run: nobody keeps `missing`, one of `judges.MARGINALS`."""
    shares = {f"marginal {missing}": 0.0}
    return Judgement(
        rate_per_s=rate_per_s,
        judged=tuple(
            Judged(criterion=each, share=Interval(value=value, low=value, high=value))
            for each in trials.judge.criteria
            for value in [shares.get(each.name, 0.0 if each.target else 1.0)]
        ),
        is_steady=False,
        is_cut=True,
        num_runs=0,
        num_requests=0,
    )
