"""How far this router has read one instance's requests, and what of that is still to be said."""

import asyncio

from core.ids import HandoffId
from rpc.pb import workers_pb2

MANY_TOKENS = 64
"""Unsaid progress that is worth a message at once: a worker keeps what is unacknowledged."""
MAX_ACKS_PER_MESSAGE = 65_536


class AckBook:
    """Cumulative positions per handoff. Nothing is said of a request that makes no progress."""

    def __init__(self) -> None:
        self.any = asyncio.Event()
        """There is something to say."""
        self.many = asyncio.Event()
        """It should not wait any longer."""
        self._positions: dict[HandoffId, int] = {}
        self._unsaid: dict[HandoffId, bool] = {}
        self._num_unsaid_tokens = 0

    def open(self, handoff_id: HandoffId) -> None:
        """This router reads the request from now on."""
        self._positions.setdefault(handoff_id, 0)

    def close(self, handoff_id: HandoffId) -> None:
        """It does not any more; an end already noted is still said."""
        if not self._unsaid.get(handoff_id):
            self._unsaid.pop(handoff_id, None)
            self._positions.pop(handoff_id, None)

    def note(self, handoff_id: HandoffId, next_position: int, *, done: bool) -> None:
        """All tokens below `next_position` have arrived; `done`: the end too."""
        before = self._positions.get(handoff_id, 0)
        self._positions[handoff_id] = max(before, next_position)
        self._unsaid[handoff_id] = done or self._unsaid.get(handoff_id, False)
        self._num_unsaid_tokens += max(0, next_position - before)
        self.any.set()
        if self._num_unsaid_tokens >= MANY_TOKENS:
            self.many.set()

    def take(self) -> list[workers_pb2.Ack]:
        """What is to be said now; it counts as said."""
        acks = [self._ack(handoff_id, done) for handoff_id, done in self._unsaid.items()]
        for ack in acks:
            if ack.done:
                del self._positions[HandoffId(ack.handoff_id)]
        self._unsaid.clear()
        self._num_unsaid_tokens = 0
        self.any.clear()
        self.many.clear()
        return acks[:MAX_ACKS_PER_MESSAGE]

    def take_all(self) -> list[workers_pb2.Ack]:
        """Every request this router reads: what a new subscription says first."""
        unsaid = self.take()
        named = {ack.handoff_id for ack in unsaid}
        rest = [handoff_id for handoff_id in self._positions if handoff_id not in named]
        return unsaid + [self._ack(handoff_id, done=False) for handoff_id in rest]

    def _ack(self, handoff_id: HandoffId, done: bool) -> workers_pb2.Ack:
        position = self._positions[handoff_id]
        return workers_pb2.Ack(handoff_id=handoff_id, next_position=position, done=done)
