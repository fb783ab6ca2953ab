"""Handoffs that ended here, remembered long enough that late messages cannot bring them back."""

from collections import OrderedDict

from core.clock import Clock
from core.errors import StaleFence
from core.ids import HandoffId
from core.request import Fence

MAX_TOMBSTONES = 65_536
"""Some 20 MB; at 1,000 requests a second a minute's worth. The oldest go first."""


class Tombstones:
    """Per handoff the highest fence that ended, for `ttl_s` seconds."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._ended: OrderedDict[HandoffId, tuple[Fence, float]] = OrderedDict()

    def bury(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Nothing of `fence` or earlier is accepted from now on."""
        buried = self._ended.pop(handoff_id, (fence, 0.0))[0]
        self._ended[handoff_id] = max(buried, fence), self._clock.now_s() + self._ttl_s
        self._forget()

    def check(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Raise StaleFence when this attempt, or a later one, has ended here."""
        self._forget()
        ended = self._ended.get(handoff_id)
        if ended is not None and fence <= ended[0]:
            raise StaleFence(f"{handoff_id}: {fence} has ended here, up to {ended[0]}")

    def _forget(self) -> None:
        now_s = self._clock.now_s()
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest][1] > now_s and len(self._ended) <= MAX_TOMBSTONES:
                return
            del self._ended[oldest]
