"""How many requests may be placed anew: so many that no failure is felt, too few to feed an outage.

As in "Handling Overload" (Beyer et al., Site Reliability Engineering, 2016): without a limit over
all requests, an outage in which each is tried eight times is eight times the load. In every ten
seconds there may be

    10 a second  +  a fifth of the first placements  +  2 for each choice that runs

retries. The last term is what the book has no need of: answers here run for minutes, and one
instance that dies hands all of its own back at once. Twice, since the first try of a lost answer
may still meet the same fault. So one dead instance never waits for the budget: its answers all run,
and 2 of each are allowed. What it bounds is the rest: beyond that an answer is placed anew at most
every five seconds, however fast the attempts fail.
"""

from collections import deque

WINDOW_S = 10.0
NUM_PER_S = 10.0
SHARE_OF_FIRST = 0.2
NUM_PER_RUNNING = 2.0
SLOT_S = 0.25
"""What is counted together."""


class RecentCount:
    """How often something happened within WINDOW_S; bounded by the number of slots."""

    def __init__(self) -> None:
        self._slots: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now_s: float) -> None:
        """Once more."""
        self._sum += 1
        if self._slots and now_s - self._slots[-1][0] < SLOT_S:
            began_at_s, num = self._slots.pop()
            self._slots.append((began_at_s, num + 1))
        else:
            self._slots.append((now_s, 1))

    def at(self, now_s: float) -> int:
        """As counted now."""
        while self._slots and now_s - self._slots[0][0] >= WINDOW_S:
            self._sum -= self._slots.popleft()[1]
        return self._sum


class RetryBudget:
    """Counts the placements of one router."""

    def __init__(self) -> None:
        self._first, self._retries = RecentCount(), RecentCount()

    def placed(self, now_s: float, *, again: bool) -> None:
        """A choice got its instances: for the first time, or not."""
        (self._retries if again else self._first).add(now_s)

    def num_left(self, now_s: float, num_running: int) -> int:
        """Retries that may be made now; never below 0."""
        allowed = (
            NUM_PER_S * WINDOW_S
            + SHARE_OF_FIRST * self._first.at(now_s)
            + NUM_PER_RUNNING * num_running
        )
        return max(0, int(allowed) - self._retries.at(now_s))
