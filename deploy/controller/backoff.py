"""How long to wait before what failed is tried again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""A missing file may be put in place at any time; a load that fails costs the host seconds."""
STABLE_S = 60.0
"""Who served that long did not die of how it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Failures one after the other, by what failed; immutable."""

    num_failures: Mapping[str, int] = field(default_factory=dict)
    not_before_s: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def failed(self, key: str, reason: str, *, served_s: float, now_s: float) -> "Backoff":
        """It ended after it had served so long; at once again if that was long enough."""
        if served_s >= STABLE_S:
            return self.succeeded(key)
        num = self.num_failures.get(key, 0) + 1
        # The first death of one that served says little.
        pause_s = 0.0 if served_s > 0 and num == 1 else pause_after(num)
        return replace(
            self,
            num_failures={**self.num_failures, key: num},
            not_before_s={**self.not_before_s, key: now_s + pause_s},
            reasons={**self.reasons, key: reason},
        )

    def succeeded(self, key: str) -> "Backoff":
        """Forget its failures."""
        return Backoff(
            num_failures=_without(self.num_failures, key),
            not_before_s=_without(self.not_before_s, key),
            reasons=_without(self.reasons, key),
        )

    def wait_s(self, key: str, now_s: float) -> float:
        """Until it may be tried; 0: now."""
        return max(0.0, self.not_before_s.get(key, now_s) - now_s)


def pause_after(num_failures: int) -> float:
    """Doubles, up to a bound."""
    return float(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(num_failures - 1, 16)))


def _without(table: Mapping[str, T], key: str) -> dict[str, T]:
    return {k: v for k, v in table.items() if k != key}
