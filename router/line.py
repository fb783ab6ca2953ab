"""Who waits for admission: bounded, served by turn, and no tenant's flood keeps others out."""

import asyncio
from dataclasses import dataclass

from core.errors import Saturated
from policy.fairness import Claim, FairQueue, ServedTokens


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """One request in the line."""

    claim: Claim
    cost: float
    """What its tenant pays with the place."""
    verdict: asyncio.Future[Saturated | None]
    """None is a place; else why there will be none."""


class Line:
    """Every call costs O(tenants × priorities), however many wait."""

    def __init__(self, *, max_queued: int, ageing_s: float, served: ServedTokens) -> None:
        self.max_queued = max_queued
        self._turns: FairQueue[Waiter] = FairQueue(ageing_s=ageing_s, served=served)
        # In order of arrival: the newest of a tenant is the last.
        self._waiting: dict[str, dict[Waiter, None]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def has_room(self, tenant: str) -> bool:
        """Whether one more of this tenant may wait, be it in another's place."""
        if len(self) < self.max_queued:
            return True
        # With it the tenant has no more than its share. Since all shares together are the line,
        # another has more than its own: so every change of places makes them more equal.
        num_waiting = len(self._waiting.get(tenant, ()))
        return num_waiting + 1 <= self.max_queued / len(self._waiting.keys() | {tenant})

    def add(self, waiter: Waiter) -> Waiter | None:
        """Wait; `has_room` has said yes. Returns who had to give way: the newest of the tenant
        that has most in the line."""
        displaced = None
        if len(self) >= self.max_queued:
            longest = max(self._waiting.values(), key=len)
            displaced = next(reversed(longest))
            self.remove(displaced)
        self._turns.add(waiter, waiter.claim)
        self._waiting.setdefault(waiter.claim.tenant, {})[waiter] = None
        return displaced

    def remove(self, waiter: Waiter) -> bool:
        """No longer wait; False when it did not."""
        if not self._turns.remove(waiter):
            return False
        tenant = waiter.claim.tenant
        del self._waiting[tenant][waiter]
        if not self._waiting[tenant]:
            del self._waiting[tenant]
        return True

    def pop(self, now_s: float) -> Waiter | None:
        """Whose turn it is; waits no longer."""
        waiter = next(self._turns.in_turn(now_s), None)
        if waiter is not None:
            self.remove(waiter)
        return waiter
