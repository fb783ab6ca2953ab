"""What moving a segment costs here: a fixed part and one per byte, from those that were sent."""

from dataclasses import dataclass

PRIOR_SEGMENT_S = 0.002
PRIOR_BYTES_PER_S = 500e6
"""Before anything is sent: inline payloads made as much on loopback. The fixed part is supposed
high, so that a fresh instance does not begin with many small segments."""
PRIOR_BYTES = 1024 * 1024
"""The supposition stands for two segments, one of nothing and one of this size."""
PRIOR_WEIGHT = 0.01
"""Of each of the two, against 1 of a segment sent just now. Never fades: segments of one size
alone cannot tell the fixed part from the other."""
MEMORY = 0.9
"""What is left of earlier segments after each new one: about the last ten count."""
MAX_SURPRISE = 8.0
"""Times what was expected, and no more, is believed of one segment: a reader that paused is no
slow link. A link that got slower is believed within a few segments."""
MIN_SEGMENT_S = 0.0002
"""Whatever was measured: the quickest of 390 segments of 24 KB took 0.22 ms through shared memory.
Segments of nearly one size often make a line through 0 or below, and what costs nothing would be
cut as finely as can be."""
MIN_S_PER_BYTE = 1e-12
"""A terabyte a second: keeps the rate finite."""


@dataclass(slots=True)
class MovingCosts:
    """Least squares of seconds over bytes, neither part below its least. Owned by the event loop.

    Five sums, whatever was sent.
    """

    _num: float = 0.0
    _bytes: float = 0.0
    _seconds: float = 0.0
    _bytes_bytes: float = 0.0
    _bytes_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._add(PRIOR_WEIGHT, 0, PRIOR_SEGMENT_S)
        self._add(PRIOR_WEIGHT, PRIOR_BYTES, PRIOR_SEGMENT_S + PRIOR_BYTES / PRIOR_BYTES_PER_S)

    @property
    def segment_s(self) -> float:
        """That a segment costs, whatever its size."""
        return self._fit()[0]

    @property
    def bytes_per_s(self) -> float:
        """Beyond that."""
        return 1.0 / self._fit()[1]

    def moved(self, num_bytes: int, seconds: float) -> None:
        """One segment of so many stored bytes took so long, from its gather until it was sent."""
        segment_s, s_per_byte = self._fit()
        expected_s = segment_s + num_bytes * s_per_byte
        self._fade()
        self._add(1.0, num_bytes, min(seconds, MAX_SURPRISE * expected_s))

    def _fit(self) -> tuple[float, float]:
        spread = self._num * self._bytes_bytes - self._bytes**2
        s_per_byte = (self._num * self._bytes_seconds - self._bytes * self._seconds) / spread
        if s_per_byte < MIN_S_PER_BYTE:
            # All of it is fixed.
            return max(MIN_SEGMENT_S, self._seconds / self._num), MIN_S_PER_BYTE
        segment_s = (self._seconds - s_per_byte * self._bytes) / self._num
        if segment_s < MIN_SEGMENT_S:
            # The best line that starts there.
            rest = self._bytes_seconds - MIN_SEGMENT_S * self._bytes
            return MIN_SEGMENT_S, max(MIN_S_PER_BYTE, rest / self._bytes_bytes)
        return segment_s, s_per_byte

    def _add(self, weight: float, num_bytes: int, seconds: float) -> None:
        self._num += weight
        self._bytes += weight * num_bytes
        self._seconds += weight * seconds
        self._bytes_bytes += weight * num_bytes**2
        self._bytes_seconds += weight * num_bytes * seconds

    def _fade(self) -> None:
        """Of what was sent; what was supposed is put back."""
        self._num *= MEMORY
        self._bytes *= MEMORY
        self._seconds *= MEMORY
        self._bytes_bytes *= MEMORY
        self._bytes_seconds *= MEMORY
        restored = (1.0 - MEMORY) * PRIOR_WEIGHT
        self._add(restored, 0, PRIOR_SEGMENT_S)
        self._add(restored, PRIOR_BYTES, PRIOR_SEGMENT_S + PRIOR_BYTES / PRIOR_BYTES_PER_S)
