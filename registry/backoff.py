"""Trying again without haste: growing delays, one log line per outage."""

import logging
import random

from registry.api import RegistryUnavailable

logger = logging.getLogger(__name__)


class Delays:
    """Growing, bounded and spread out; seconds."""

    FIRST_DELAY_S = 0.25
    MAX_DELAY_S = 2.0
    """With a call's limit of 2 s a heartbeat is back within the 5 s of reliability F6."""

    def __init__(self, rng: random.Random | None = None) -> None:
        # Only spreads out reconnects: no secret and no result depends on it.
        self._rng = rng or random.Random()
        self.num_taken = 0

    def next_s(self) -> float:
        """How long to wait before the next try."""
        # The exponent is capped too: an outage of a day must not overflow a float.
        full_s = min(self.MAX_DELAY_S, self.FIRST_DELAY_S * 2.0 ** min(self.num_taken, 8))
        self.num_taken += 1
        return full_s * self._rng.uniform(0.5, 1.0)


class Outage:
    """What one loop remembers of failing calls: how often, and whether it was said."""

    FIRST_DELAY_S = Delays.FIRST_DELAY_S
    MAX_DELAY_S = Delays.MAX_DELAY_S

    def __init__(self, who: str, rng: random.Random | None = None) -> None:
        self._who = who
        self._delays = Delays(rng)

    def failed(self, error: RegistryUnavailable) -> float:
        """Note one more failure; how long to wait before the next try, in seconds."""
        if self._delays.num_taken == 0:
            logger.warning("registry lost: %s: %s", self._who, error)
        return self._delays.next_s()

    def ended(self) -> None:
        """Note a success."""
        if num_failures := self._delays.num_taken:
            logger.info("registry back: %s after %d failures", self._who, num_failures)
        self._delays.num_taken = 0
