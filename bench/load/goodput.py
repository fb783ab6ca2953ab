"""The highest rate that attains the target: which rate to try next, and what the tries say."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.load.measures import Measures
from planner.search import bracket
from planner.search.bracket import Bracket, Try
from planner.search.intervals import Share


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

    @property
    def rates(self) -> bracket.Search:
        """As the planner looks for them."""
        return bracket.Search(
            first_rate_per_s=self.first_rate_per_s,
            least_rate_per_s=self.least_rate_per_s,
            precision=self.precision,
        )


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
        return self._bracket.low_per_s

    @property
    def high_per_s(self) -> float:
        """The lowest rate that did not; infinite where all attained it."""
        return self._bracket.high_per_s

    @property
    def _bracket(self) -> Bracket:
        return bracket.bracket(self.tries)

    @property
    def tries(self) -> list[Try]:
        """What the points come to."""
        return [Try(point.rate_per_s, point.attains(self.target)) for point in self.points]


async def find_goodput(search: Search, try_rate: Callable[[float], Awaitable[Measures]]) -> Goodput:
    """Try one rate after the other; each `try_rate` begins and ends with an idle system."""
    found = Goodput(points=(), target=search.target)
    while (rate_per_s := bracket.next_rate(found.tries, search.rates)) is not None:
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
