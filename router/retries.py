"""The router's retry budget, and the line of choices that wait for it: first come, first served."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from core.clock import Clock
from core.errors import RetriesSpent
from core.ids import HandoffId
from policy.retry_budget import WINDOW_S, RetryBudget


class Retries:
    """One per router."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._budget = RetryBudget()
        self._num_running = 0
        self._waiting: dict[HandoffId, None] = {}
        """In order of arrival."""

    @contextmanager
    def running(self, handoff_id: HandoffId) -> Iterator[None]:
        """A choice that may have to be placed anew."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1
            self._waiting.pop(handoff_id, None)

    def refusal(self, handoff_id: HandoffId) -> RetriesSpent | None:
        """Why the choice has to wait before it is placed again, if it has to."""
        # Whoever has its turn leaves the line, lest one that finds no instance holds up others.
        num_left = self._budget.num_left(self._clock.now_s(), self._num_running)
        self._waiting[handoff_id] = None
        if num_left >= len(self._waiting) or handoff_id in islice(self._waiting, num_left):
            del self._waiting[handoff_id]
            return None
        return RetriesSpent(
            f"too many requests are placed anew: {len(self._waiting)} wait for their turn,"
            f" {num_left} may go now",
            retry_after_s=WINDOW_S,
        )

    def placed(self, *, again: bool) -> None:
        """A choice got its instances."""
        self._budget.placed(self._clock.now_s(), again=again)
