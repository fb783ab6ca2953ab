"""Room for handoffs on a decode instance: the real reservations, or blocks as they come."""

import asyncio
from typing import TYPE_CHECKING

from core.blocks import BlockState
from core.handoff import SinkState
from kv_transfer.sink import Sink
from policy.fairness import Claim, FairQueue, ServedTokens
from tests.simulation.content import TENANT
from tests.simulation.loop import Waiting

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode, Job

WANTS_ROOM = (SinkState.RESERVING, SinkState.RECEIVING)
AGEING_S = 1.0


class Room:
    """By turn, all or nothing, with a floor for growth."""

    def __init__(self, node: "DecodeNode") -> None:
        self._node = node
        self._reservations = node.world.parts.reservations(
            node.blocks,
            FairQueue(ageing_s=AGEING_S, served=ServedTokens()),
            node,
            sinks=self._sinks,
            clock=node.world.clock,
            work=asyncio.Event(),
        )

    def settle(self) -> None:
        """Put those in the queue whose prefill has started."""
        for job in list(self._node.jobs.values()):
            sink = job.sink
            if not job.is_admitted or sink.state is not SinkState.RESERVING:
                continue
            if job.waiting is not None or not sink.can_reserve:
                continue
            if sink.num_missing_blocks:
                self._wait(job)
            else:
                # Retargeted: the blocks are here already.
                self._node.reserved(job, sink.reserve(()))

    def grant(self) -> None:
        """Answers have grown or ended."""
        self._reservations.grant()

    def _sinks(self) -> list[Sink]:
        return [job.sink for job in self._node.jobs.values()]

    def _wait(self, job: "Job") -> None:
        assert job.spec is not None
        self._node.world.seen["reservations"] += 1
        claim = Claim(tenant=TENANT, priority=0, arrived_at_s=self._node.world.now_s)
        chain = job.spec.names(job.num_tokens)
        coroutine = self._reservations.reserve(job.sink, claim, chain)
        job.waiting = Waiting(coroutine, lambda: self._granted(job))
        if job.sink.state is SinkState.RESERVING:
            self._node.world.seen["waits for room"] += 1

    def _granted(self, job: "Job") -> None:
        job.waiting = None
        node = self._node
        if job.sink.state is SinkState.RECEIVING:
            node.world.checks.gave_room(job.sink, node.blocks.num_free, node.num_growing)
            node.reserved(job, job.sink.num_tokens)


class PartRoom(Room):
    """What there is, for one handoff after the other, so that none of them starves half-way."""

    def settle(self) -> None:
        """Without a queue."""
        for job in self._node.jobs.values():
            sink = job.sink
            if not job.is_admitted or sink.state not in WANTS_ROOM:
                continue
            if sink.state is SinkState.RESERVING and not sink.can_reserve:
                continue
            if sink.state is SinkState.RESERVING or sink.num_missing_blocks:
                self._reserve(job)
            if sink.num_missing_blocks:
                self._reclaim()
                return

    def _reclaim(self) -> None:
        """As Reservations do."""
        for sink in self._sinks():
            if sink.keeps_room:
                sink.yield_room()

    def _reserve(self, job: "Job") -> None:
        sink, blocks = job.sink, self._node.blocks
        assert job.spec is not None
        cached = () if sink.block_ids else blocks.share(job.spec.names(sink.num_tokens))
        num_blocks = min(sink.num_missing_blocks - len(cached), blocks.num_free)
        if not num_blocks and not cached and sink.state is SinkState.RECEIVING:
            return
        credit = sink.reserve(blocks.allocate(num_blocks, BlockState.INCOMING), cached)
        self._node.reserved(job, credit)
