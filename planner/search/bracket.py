"""Which rate to try next on the way to the highest one that attains, and what the tries say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    least_rate_per_s: float = 0.0
    """Nothing below it is tried."""
    most_rate_per_s: float = float("inf")
    """Known not to attain, without a try."""
    precision: float = 0.1
    """Ends when the two rates differ by at most this share of the lower one..."""
    resolution_per_s: float = 0.0
    """...or by no more than this."""


class Try(NamedTuple):
    """One rate, and whether it attained."""

    rate_per_s: float
    attains: bool


class Bracket(NamedTuple):
    """The bounds are what was tried, no interpolation."""

    low_per_s: float
    """The highest rate that attained with every rate tried below it; 0: none."""
    high_per_s: float
    """The lowest rate that did not; infinite where all attained."""


def bracket(tries: Sequence[Try]) -> Bracket:
    """Of what was tried: a rate that attains above one that missed does not count."""
    high_per_s = min((t.rate_per_s for t in tries if not t.attains), default=float("inf"))
    attaining = (t.rate_per_s for t in tries if t.attains and t.rate_per_s < high_per_s)
    return Bracket(max(attaining, default=0.0), high_per_s)


def next_rate(tries: Sequence[Try], search: Search) -> float | None:
    """Up or down from the first rate until both sides are known, then the middle; None: done."""
    low, high = bracket(tries)
    high = min(high, search.most_rate_per_s)
    if len(tries) >= MAX_POINTS:
        return None
    if not tries:
        return search.first_rate_per_s
    if high == float("inf"):
        return low * GROWTH if len(tries) <= MAX_DOUBLINGS else None
    if low == 0:
        is_worth_it = high / GROWTH >= search.least_rate_per_s
        return high / GROWTH if is_worth_it and len(tries) <= MAX_HALVINGS else None
    gap_per_s = max(search.precision * low, search.resolution_per_s)
    return (low + high) / 2 if high - low > gap_per_s else None
