"""Time as a dependency: nothing else in Baton reads a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds on one host; never compared across hosts."""

    def now_s(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...


class MonotonicClock:
    """The host's own monotonic clock."""

    def now_s(self) -> float:
        """Seconds since boot or similar."""
        return time.monotonic()


def unix_time_s() -> float:
    """Seconds since 1970, UTC, by the host's wall clock, which may be set back and forth.

    For people and for other systems, who know no other: never for a duration or a decision.
    """
    return time.time()


class ManualClock:
    """A clock that moves only when told to: tests and the simulation run on it."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """The moment last advanced to."""
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Move forward by `duration_s` ≥ 0 seconds."""
        if duration_s < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-duration_s} s")
        self._now_s += duration_s
