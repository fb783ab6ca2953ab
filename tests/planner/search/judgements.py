"""Judgements without a simulation."""

from planner.search.intervals import Interval
from planner.search.judges import Criterion
from planner.search.steady import Judged, Judgement


def judgement(rate_per_s: float, share: float, half: float = 0.0) -> Judgement:
    """Of one criterion, whose share of requests is known to `half` on either side."""
    interval = Interval(value=share, low=share - half, high=share + half)
    return Judgement(
        rate_per_s=rate_per_s,
        judged=(Judged(criterion=Criterion(name="all", target=0.9), share=interval),),
        is_steady=True,
        is_cut=False,
        num_runs=1,
        num_requests=1,
    )
