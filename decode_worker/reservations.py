"""Room for handoffs coming in: by turn, after the growth and the return of running answers.

Whoever waits holds nothing that another waits for. What the prefix cache holds of a prompt is
shared when its turn comes, in the same moment as the rest is allocated. What a retargeted handoff
has from its earlier attempt it keeps only until somebody here waits for room: its new prefill may
wait for blocks that are leased to just that one.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.blocks import BlockState
from core.clock import Clock
from core.prefix import BlockHash
from kv_transfer.sink import Sink
from policy.fairness import Claim, FairQueue
from worker_host.blocks import MAX_GROWTH_RESERVE, InstanceBlocks


class Running(Protocol):
    """Who comes first."""

    @property
    def num_growing(self) -> int:
        """Answers that may need a block with any step."""
        ...

    @property
    def has_swapped(self) -> bool:
        """Answers wait in host memory for room. They have been asked when `grant` is called."""
        ...

    @property
    def is_short(self) -> bool:
        """They do, and others run that will make it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A sink without room for its whole prompt."""

    sink: Sink
    chain: Sequence[BlockHash]
    """Names of the full blocks of its prompt."""
    granted: asyncio.Event


class Reservations:
    """Hands free blocks to the sinks that wait for them. Nobody is overtaken: while the one whose
    turn it is has no room, all wait."""

    def __init__(
        self,
        blocks: InstanceBlocks,
        waiting: FairQueue[Waiter],
        running: Running,
        *,
        sinks: Callable[[], Iterable[Sink]],
        clock: Clock,
        work: asyncio.Event,
    ) -> None:
        """`waiting` is empty, and from now on ours; `sinks` are all that have not committed; `work`
        wakes whoever schedules."""
        self._blocks = blocks
        self._waiting = waiting
        self._running = running
        self._sinks = sinks
        self._clock = clock
        self._work = work
        self._is_planned = False
        blocks.on_freed(self._grant_soon)

    def __len__(self) -> int:
        return len(self._waiting)

    async def reserve(self, sink: Sink, claim: Claim, chain: Sequence[BlockHash] = ()) -> None:
        """Wait for room for the whole prompt, whose full blocks `chain` names. The caller bounds it
        by the request's deadline."""
        waiter = Waiter(sink, chain, asyncio.Event())
        if sink.block_ids and (self._running.has_swapped or not self._give(waiter)):
            sink.yield_room()
        if not waiter.granted.is_set():
            self._waiting.add(waiter, claim)
        try:
            self._grant_if_due()
            if not waiter.granted.is_set():
                # An answer that waits for memory may have to make room now.
                self._work.set()
            await waiter.granted.wait()
        finally:
            self._waiting.remove(waiter)
            # Whoever stood behind this one may be next.
            self._grant_soon()

    def grant(self) -> None:
        """Give what there is to whom it is due."""
        if self._running.has_swapped:
            self._reclaim()
        if self._running.is_short:
            return
        for waiter in self._waiting.in_turn(self._clock.now_s()):
            if waiter.sink.can_reserve and not self._give(waiter):
                self._reclaim()
                return

    def _reclaim(self) -> None:
        """Take back what no prefill fills yet; what becomes free is granted next."""
        for sink in self._sinks():
            if sink.keeps_room:
                sink.yield_room()

    def _grant_soon(self) -> None:
        """Blocks are freed in the middle of other work: that has to end first."""
        if len(self) and not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._grant_if_due)

    def _grant_if_due(self) -> None:
        self._is_planned = False
        if self._running.has_swapped:
            # Whoever schedules asks them first, and calls `grant` then.
            self._work.set()
        else:
            self.grant()

    def _give(self, waiter: Waiter) -> bool:
        sink = waiter.sink
        if not sink.can_reserve:
            return False
        num_missing = sink.num_missing_blocks
        chain = _of_use(waiter)
        hits = self._blocks.hits(chain)
        num_fresh = num_missing - hits.num_blocks
        if num_missing and num_fresh + self._floor > hits.num_free_after:
            return False
        self._waiting.remove(waiter)
        # First, so that the allocation does not evict them.
        shared = self._blocks.share(chain)
        sink.reserve(self._blocks.allocate(num_fresh, BlockState.INCOMING), shared)
        waiter.granted.set()
        return True

    @property
    def _floor(self) -> int:
        """One block per running answer stays free: running growth comes first."""
        return min(self._running.num_growing, MAX_GROWTH_RESERVE)


def _of_use(waiter: Waiter) -> Sequence[BlockHash]:
    """Names of blocks that could be shared: none once it holds any, which come after all others."""
    sink = waiter.sink
    return () if sink.block_ids else waiter.chain[: sink.num_tokens // sink.layout.block_size]
