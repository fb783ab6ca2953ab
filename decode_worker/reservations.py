"""Room for handoffs coming in: first come, first served, after the growth of running answers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from core.blocks import BlockState
from kv_transfer.sink import Sink
from worker_host.blocks import MAX_GROWTH_RESERVE, InstanceBlocks


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A sink without room for its whole prompt."""

    sink: Sink
    granted: asyncio.Event


class Reservations:
    """Hands free blocks to the sinks that wait for them, in order of announcement."""

    def __init__(self, blocks: InstanceBlocks, num_running: Callable[[], int]) -> None:
        self._blocks = blocks
        self._num_running = num_running
        self._waiting: dict[Waiter, None] = {}
        self._is_planned = False
        blocks.on_freed(self._grant_soon)

    async def reserve(self, sink: Sink) -> None:
        """Wait for room for the whole prompt. The caller bounds it by the request's deadline."""
        waiter = Waiter(sink, asyncio.Event())
        self._waiting[waiter] = None
        try:
            self._grant()
            await waiter.granted.wait()
        finally:
            self._waiting.pop(waiter, None)
            # Whoever stood behind this one may be next.
            self._grant_soon()

    def _grant_soon(self) -> None:
        """Blocks are freed in the middle of other work: that has to end first."""
        if self._waiting and not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        self._is_planned = False
        for waiter in list(self._waiting):
            if waiter.granted.is_set() or not waiter.sink.can_reserve:
                continue
            if not self._has_room(num_missing := waiter.sink.num_missing_blocks):
                return
            waiter.sink.reserve(self._blocks.allocate(num_missing, BlockState.INCOMING))
            waiter.granted.set()

    def _has_room(self, num_missing: int) -> bool:
        # One block per running answer stays free: running growth comes first.
        floor = min(self._num_running(), MAX_GROWTH_RESERVE)
        return not num_missing or num_missing + floor <= self._blocks.num_free
