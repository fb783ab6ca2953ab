"""What no other beats: the front of goodput against what it costs."""

from collections.abc import Iterable
from typing import NamedTuple


class Point(NamedTuple):
    """One cluster."""

    cost: float
    goodput: float


def front(points: Iterable[Point]) -> tuple[Point, ...]:
    """Points to which no other is at once no dearer and better, or cheaper and no worse; by cost,
    goodput rising."""
    found: list[Point] = []
    for point in sorted(set(points), key=lambda each: (each.cost, -each.goodput)):
        if not found or point.goodput > found[-1].goodput:
            found.append(point)
    return tuple(found)
