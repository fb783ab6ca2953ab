"""Every request on the decode side: accepted, moved, stopped and ended in one place."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from core.clock import Clock
from core.config import HandoffConfig, WorkerConfig
from core.errors import (
    BatonError,
    DeadlinePassed,
    FieldViolation,
    InvalidRequest,
    KvCorrupt,
    Saturated,
    SlowReader,
    StaleFence,
    UnknownRequest,
)
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.load import Load
from core.request import Fence, finish_reason
from core.work import WorkRequest
from decode_worker.incoming import Fetches, Incoming
from decode_worker.job import Answer, DecodeJob
from decode_worker.outbox import Facts, Failure
from decode_worker.phase import DecodePhase
from decode_worker.reservations import Reservations
from decode_worker.routers import Routers
from kv_transfer.errors import KvLost
from kv_transfer.fetch import FetchResult
from kv_transfer.sink import Sink
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.phase import StepOutcome
from worker_host.tombstones import Tombstones

logger = logging.getLogger(__name__)


class Preempted(Saturated):
    """Ended here so that earlier answers find blocks; it may go on elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeParts:
    """What the decode side is given of its instance."""

    blocks: InstanceBlocks
    holds: StepHolds
    layout: KvLayout
    vocab_size: int
    door: Door
    clock: Clock
    work: asyncio.Event
    fetches: Fetches
    load: Callable[[], Load]
    worker: WorkerConfig
    handoff: HandoffConfig


class DecodeDesk:
    """Owns the jobs; everything that ends one comes through `_end`."""

    def __init__(self, parts: DecodeParts) -> None:
        self._parts = parts
        self._jobs: dict[HandoffId, DecodeJob] = {}
        self._answers: dict[Answer, DecodeJob] = {}
        self._tombstones = Tombstones(parts.clock, parts.handoff.lease_ttl_s)
        self.phase = DecodePhase(
            blocks=parts.blocks,
            holds=parts.holds,
            max_running=parts.worker.max_running,
            work=parts.work,
            reporter=self,
        )
        reservations = Reservations(parts.blocks, lambda: self.phase.num_running)
        self._incoming = Incoming(
            fetches=parts.fetches,
            reserve=reservations.reserve,
            ledger=self,
            clock=parts.clock,
            config=parts.handoff,
        )
        self.routers = Routers(
            config=parts.worker, clock=parts.clock, load=parts.load, abandon=self._abandon
        )

    async def run(self) -> None:
        """Receive handoffs until cancelled."""
        try:
            await self._incoming.run()
        finally:
            self.routers.close()
            for job in self._jobs.values():
                _stop_timer(job)

    @property
    def num_waiting(self) -> int:
        """Handoffs that have not committed."""
        return len(self._jobs) - len(self._answers)

    # --- what routers ask -------------------------------------------------------------------

    def accept(self, work: WorkRequest, address: str) -> None:
        """Take a handoff over; the same one again does nothing, a later attempt replaces it."""
        job = self._jobs.get(work.handoff_id)
        if job is not None and work.fence == job.fence:
            return
        if job is not None and work.fence < job.fence:
            raise StaleFence(f"{work.handoff_id}: {work.fence} is behind {job.fence}")
        self._tombstones.check(work.handoff_id, work.fence)
        # The last token's KV is never needed.
        num_kv_tokens = len(work.prompt_token_ids) + work.stop.max_tokens - 1
        self._parts.door.check(work, num_kv_tokens=num_kv_tokens)
        if (num_waiting := self.num_waiting) >= self._parts.worker.max_queued:
            raise Saturated(f"{num_waiting} handoffs wait on this decode instance, limit as many")
        outbox = self._parts_of(work)
        if job is not None:
            self._end(job, forget=True)
        self._open(work, address, outbox)
