"""Handoffs that ended here, remembered for one lease time: a late call must not revive them."""

from core.errors import StaleFence
from core.ids import HandoffId
from core.request import Fence
from kv_transfer.source import NO_ATTEMPT

MAX_TOMBSTONES = 16_384
"""At 1,000 requests a second and a lease of 10 s; beyond, the oldest is forgotten early."""


class Tombstones:
    """The highest fence that ended, by handoff."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._fences: dict[HandoffId, tuple[Fence, float]] = {}
        """In order of expiry: all are kept equally long."""

    def __len__(self) -> int:
        return len(self._fences)

    def add(self, handoff_id: HandoffId, fence: Fence, now_s: float) -> None:
        """This attempt and every earlier one have ended."""
        newest = max(fence, self.fence(handoff_id, now_s))
        self._fences.pop(handoff_id, None)
        while len(self._fences) >= MAX_TOMBSTONES:
            del self._fences[next(iter(self._fences))]
        self._fences[handoff_id] = (newest, now_s + self._keep_s)

    def fence(self, handoff_id: HandoffId, now_s: float) -> Fence:
        """The highest that ended; NO_ATTEMPT when none is remembered."""
        fence, expires_at_s = self._fences.get(handoff_id, (NO_ATTEMPT, now_s))
        return fence if now_s < expires_at_s else NO_ATTEMPT

    def check(self, handoff_id: HandoffId, fence: Fence, now_s: float) -> None:
        """Raise StaleFence for an attempt that has ended."""
        ended = self.fence(handoff_id, now_s)
        if fence <= ended:
            raise StaleFence(f"{handoff_id}: {fence} has ended here, as all up to {ended}")

    def expire(self, now_s: float) -> None:
        """Forget those whose time has passed."""
        while self._fences:
            handoff_id, (_, expires_at_s) = next(iter(self._fences.items()))
            if now_s < expires_at_s:
                return
            del self._fences[handoff_id]

    @property
    def next_expiry_s(self) -> float | None:
        """When `expire` has something to do."""
        return next((expires_at_s for _, expires_at_s in self._fences.values()), None)
