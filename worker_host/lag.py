"""How late the event loop runs its callbacks while steps are running."""

import asyncio
from collections import deque

from core.clock import Clock

SAMPLE_EVERY_S = 0.005  # half the bar of 10 ms; 200 wakes a second cost under 1 % of a core
MAX_SAMPLES = 4096  # 20 s of a busy loop


class LagMonitor:
    """Samples only while steps run: an idle instance has nothing that could hold its loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples_s: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._is_sampling = False
        self._is_running = False
        self._ran_lately = False
        self._due_at_s = 0.0

    def step_begins(self) -> None:
        """Sample until a while after it returned."""
        self._is_running = self._ran_lately = True
        if not self._is_sampling:
            self._is_sampling = True
            self._plan()

    def step_returned(self) -> None:
        """Stop soon, unless another begins."""
        self._is_running = False

    def take_p99_s(self) -> float:
        """The 99th percentile (nearest rank) since the last call; 0 when nothing ran."""
        samples_s = sorted(self._samples_s)
        self._samples_s.clear()
        return samples_s[-(-99 * len(samples_s) // 100) - 1] if samples_s else 0.0

    def _plan(self) -> None:
        self._due_at_s = self._clock.now_s() + SAMPLE_EVERY_S
        asyncio.get_running_loop().call_later(SAMPLE_EVERY_S, self._sample)

    def _sample(self) -> None:
        self._samples_s.append(max(0.0, self._clock.now_s() - self._due_at_s))
        if self._is_running or self._ran_lately:
            self._ran_lately = False
            self._plan()
        else:
            self._is_sampling = False
