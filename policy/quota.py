"""Token buckets, and how routers share one: by demand, never more than all of it."""

from dataclasses import dataclass

FLOOR = 0.1
"""Of an equal share, that a router keeps without demand: its next request need not wait."""


@dataclass(slots=True)
class Bucket:
    """Tokens that may be taken now; refilled by the clock that its callers read."""

    level: float
    at_s: float
    """When the level was right."""

    def refill(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        """Up to now; never above the capacity."""
        self.level = min(capacity, self.level + rate_per_s * max(0.0, now_s - self.at_s))
        self.at_s = now_s

    def take(self, num_tokens: float, capacity: float) -> bool:
        """Whether so many were there. A request above the capacity takes a full bucket, and what
        it takes more is owed."""
        if self.level < min(num_tokens, capacity):
            return False
        self.level -= num_tokens
        return True

    def wait_s(self, num_tokens: float, rate_per_s: float, capacity: float) -> float:
        """Until so many are there."""
        missing = min(num_tokens, capacity) - self.level
        return max(0.0, missing / rate_per_s) if rate_per_s > 0 else float("inf")


def wanted_share(own_demand: float, all_demand: float, num_routers: int) -> float:
    """Of a bucket, for one of so many routers: by demand, above a floor.

    The wanted shares of all who see the same demands sum to 1.
    """
    floor = FLOOR / num_routers
    if all_demand <= 0:
        return 1 / num_routers
    return floor + (1 - FLOOR) * (own_demand / all_demand)
