"""The highest rate that attains the target: which rate to try next, and what the tries say."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.load.measures import Measures
from bench.load.spread import Share

GROWTH = 2.0
"""From rate to rate until both sides are known."""
MAX_DOUBLINGS = 10
"""A thousand times the first rate."""
MAX_HALVINGS = 6
"""A 64th of it. What attains nothing there is seldom a matter of load, and slow rates take long."""
MAX_POINTS = 16
"""With both sides known after the fewest steps this leaves bisections for any precision in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is looked for."""

    first_rate_per_s: float
    target: float = 0.9
    """Attainment, 0 to 1."""
    least_rate_per_s: float = 0.0
    """Below it too few requests would arrive to say anything."""
    precision: float = 0.1
    """Ends when the two rates differ by at most this share of the lower one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One rate, tried."""

    rate_per_s: float
    attainment: Share
    is_steady: bool
    """The backlog does not grow: a longer run would come to the same."""

    def attains(self, target: float) -> bool:
        """A growing backlog misses any target once the run is long enough."""
        return self.is_steady and self.attainment.value >= target

    def is_sure(self, target: float) -> bool:
        """Whether chance does not explain the verdict (95 %)."""
        return not self.is_steady or not self.attainment.low < target < self.attainment.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Lies between these two rates per second: the bounds are what was tried, no interpolation."""

    points: Sequence[Point]
    """In the order tried."""
    target: float

    @property
    def low_per_s(self) -> float:
        """The highest rate that attained the target with every rate tried below it; 0: none."""
        attaining = (p.rate_per_s for p in self.points if p.attains(self.target))
        return max((rate for rate in attaining if rate < self.high_per_s), default=0.0)

    @property
    def high_per_s(self) -> float:
        """The lowest rate that did not; infinite where all attained it."""
        missing = (p.rate_per_s for p in self.points if not p.attains(self.target))
        return min(missing, default=float("inf"))


def next_rate(found: Goodput, search: Search) -> float | None:
    """Up or down from the first rate until both sides are known, then the middle; None: done."""
    low, high = found.low_per_s, found.high_per_s
    if len(found.points) >= MAX_POINTS:
        return None
    if not found.points:
        return search.first_rate_per_s
    if high == float("inf"):
        return low * GROWTH if len(found.points) <= MAX_DOUBLINGS else None
    if low == 0:
        is_worth_it = high / GROWTH >= search.least_rate_per_s
        return high / GROWTH if is_worth_it and len(found.points) <= MAX_HALVINGS else None
    return (low + high) / 2 if high - low > search.precision * low else None


async def find_goodput(search: Search, try_rate: Callable[[float], Awaitable[Measures]]) -> Goodput:
    """Try one rate after the other; each `try_rate` begins and ends with an idle system."""
    found = Goodput(points=(), target=search.target)
    while (rate_per_s := next_rate(found, search)) is not None:
        point = _point(rate_per_s, await try_rate(rate_per_s))
        found = Goodput(points=(*found.points, point), target=search.target)
    return found


def _point(rate_per_s: float, measures: Measures) -> Point:
    if measures.attainment is None:
        raise ValueError("goodput was asked for without an SLO")
    return Point(
        rate_per_s=rate_per_s,
        attainment=measures.attainment,
        is_steady=not measures.trend.grows,
    )
