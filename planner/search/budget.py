"""What may be spent on a cluster, and how much of something that buys."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from planner.search.fleet import Fleet, spent
from planner.search.results import Candidate, Goal

Amounts = Mapping[Goal, float]
"""Of GPUs, of USD per hour, of watts installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """All of it together."""

    max_gpus: int
    max_usd_per_hour: float = inf
    max_w: float = inf

    @property
    def amounts(self) -> Amounts:
        """By what is saved where it is the goal."""
        return {
            Goal.GPUS: self.max_gpus,
            Goal.COST: self.max_usd_per_hour,
            Goal.POWER: self.max_w,
        }


def amounts(fleet: Fleet, candidate: Candidate) -> Amounts:
    """That a cluster spends."""
    return {goal: spent(fleet, candidate, goal) for goal in (Goal.GPUS, Goal.COST, Goal.POWER)}


def affordable(left: float, each: float) -> int:
    """So many of a price; a hair more, or 24.8 · 3 would not hold three of 24.8."""
    return int(left / each + 1e-9) if left > 0 else 0


def num_affordable(left: Amounts, each: Amounts) -> int:
    """Of one thing, by whatever runs out first. GPUs are never without an end."""
    ends = (goal for goal in each if each[goal] > 0 and left[goal] < inf)
    return min(affordable(left[goal], each[goal]) for goal in ends)


def less(left: Amounts, each: Amounts, num: int) -> Amounts:
    """What remains after so many."""
    return {goal: left[goal] - num * each[goal] for goal in left}
