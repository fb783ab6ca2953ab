"""Whether requests pile up: the number in flight over time, and its trend."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.outcome import Outcome

NOISE = 3.0
"""Standard deviations. In a steady state the number in flight spreads as a Poisson number of its
mean does, or less where servers limit it; a mean over a third of the time spreads less still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Mean number of requests in flight, in the first and in the last third of a window."""

    first: float
    last: float

    @property
    def grows(self) -> bool:
        """By more than chance explains: the load is above what can be served for long."""
        return self.last - self.first > NOISE * math.sqrt(max(1.0, self.first))


def trend(outcomes: Sequence[Outcome], from_s: float, to_s: float) -> Trend:
    """Over arrivals and ends within [from_s, to_s]."""
    third_s = (to_s - from_s) / 3
    return Trend(
        first=mean_in_flight(outcomes, from_s, from_s + third_s),
        last=mean_in_flight(outcomes, to_s - third_s, to_s),
    )


def mean_in_flight(outcomes: Sequence[Outcome], from_s: float, to_s: float) -> float:
    """Over time: what all spent in flight within [from_s, to_s], per second of it."""
    if to_s <= from_s:
        return 0.0
    spent_s = sum(max(0.0, min(o.ended_at_s, to_s) - max(o.at_s, from_s)) for o in outcomes)
    return spent_s / (to_s - from_s)


def in_flight(outcomes: Sequence[Outcome], at_s: Sequence[float]) -> list[int]:
    """How many at each of these moments."""
    begins = sorted(o.at_s for o in outcomes)
    ends = sorted(o.ended_at_s for o in outcomes)
    return [bisect_right(begins, t) - bisect_right(ends, t) for t in at_s]
