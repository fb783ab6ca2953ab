"""How many more answers fit the TPOT target, looked at often but not at every question."""

from typing import Protocol

from core.clock import Clock

LOOK_EVERY_S = 0.02
"""Reports come as often at most; in between what was admitted is subtracted."""


class Source(Protocol):
    """Who can tell."""

    def num_free_answers(self, target_s: float) -> int | None:
        """None while nothing is known."""
        ...


class Headroom:
    """Implements admission's Room."""

    def __init__(self, source: Source, clock: Clock, target_s: float) -> None:
        """`target_s` 0: there is always room."""
        self._source = source
        self._clock = clock
        self._target_s = target_s
        self._num_free: int | None = None
        self._looked_at_s: float | None = None

    def has_room(self) -> bool:
        """For one more answer."""
        if not self._target_s:
            return True
        now_s = self._clock.now_s()
        if self._looked_at_s is None or now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._num_free = self._source.num_free_answers(self._target_s)
            self._looked_at_s = now_s
        return self._num_free is None or self._num_free > 0

    def taken(self) -> None:
        """One more is."""
        if self._num_free is not None:
            self._num_free -= 1
