"""The counts of machines that pass and cost least: a walk along the edge of what passes.

More machines of either slot are taken to do no worse.
"""

from collections.abc import Callable, Iterator
from itertools import count
from math import ceil

from planner.search.budget import affordable
from planner.search.machines import (
    ANY_COUNT,
    Budget,
    Counts,
    Design,
    Saving,
    with_count,
)
from planner.search.steady import Judgement
from planner.sim.spec import Cluster

GROWTH = 1.5
"""Of all slots, until some counts pass."""
MAX_GROWTHS = 24
"""About 17,000 times as many as one of each."""
HAIR = 1e-9
"""Relative: 30 machines cost the same however they are summed."""


class Cheapest:
    """One search, and what it has tried so far."""

    def __init__(
        self, design: Design, saving: Saving, budget: Budget, judge: Callable[[Cluster], Judgement]
    ) -> None:
        self._design, self._saving, self._budget = design, saving, budget
        self._judge = judge
        self._judged: dict[Counts, Judgement] = {}

    def judge(self, counts: Counts) -> Judgement:
        """Once each."""
        if counts not in self._judged:
            self._judged[counts] = self._judge(self._design.cluster(counts))
        return self._judged[counts]

    def run(self) -> list[Counts]:
        """All that were found at the least cost."""
        enough = self._enough()
        if enough is None:
            return []
        if len(enough) == 1:
            return [self._fewest(enough)]
        fewest_readers = self._fewest(enough)[0]
        best, cost = [enough], self._cost(enough)
        for writers in count(1):
            most = self._most_readers(writers, cost)
            if most < 1:
                break
            # With fewer writers than `enough` has, no fewer readers will do.
            too_few = most < fewest_readers and writers <= enough[1]
            if too_few or not self._passes((most, writers)):
                continue
            counts = self._fewest((most, writers))
            found = self._cost(counts)
            best = [counts] if found < cost * (1 - HAIR) else [*best, counts]
            cost = min(cost, found)
        return list(dict.fromkeys(c for c in best if self._cost(c) <= cost * (1 + HAIR)))

    def _enough(self) -> Counts | None:
        """Some counts that pass: all slots grown alike, as far as the budget goes."""
        counts: Counts = (1,) * len(self._design.slots)
        for _ in range(MAX_GROWTHS):
            if not self._design.is_within(counts, self._budget):
                break
            if self._passes(counts):
                return counts
            counts = tuple(ceil(GROWTH * each) for each in counts)
        return next((c for c in self._edge() if self._passes(c)), None)

    def _edge(self) -> Iterator[Counts]:
        """Where all of a budget is spent; nothing where it has no end."""
        if self._design.most((1,) * len(self._design.slots), 0, self._budget) < ANY_COUNT // 2:
            yield from splits(self._design, self._budget)

    def _fewest(self, enough: Counts) -> Counts:
        """Of the first slot, the others as they are."""
        low, high = 0, enough[0]
        while high - low > 1:
            middle = (low + high) // 2
            if self._passes(with_count(enough, 0, middle)):
                high = middle
            else:
                low = middle
        return with_count(enough, 0, high)

    def _most_readers(self, writers: int, cost: float) -> int:
        """Beside so many writers, for no more than the best so far."""
        none = (0, writers)
        each = self._design.slots[0].machine.cost(self._saving)
        left = affordable(cost * (1 + HAIR) - self._cost(none), each)
        return min(left, self._design.most(none, 0, self._budget))

    def _passes(self, counts: Counts) -> bool:
        return min(counts) > 0 and self.judge(counts).attains

    def _cost(self, counts: Counts) -> float:
        return self._design.spent(counts, self._saving)


def splits(design: Design, budget: Budget) -> Iterator[Counts]:
    """Every division of a budget to which nothing can be added in the last slot."""
    if len(design.slots) == 1:
        if most := design.most((0,), 0, budget):
            yield (most,)
        return
    for readers in range(1, design.most((0, 1), 0, budget) + 1):
        if writers := design.most((readers, 0), 1, budget):
            yield readers, writers
