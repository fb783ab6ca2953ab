"""Handoffs on their way in: fetch, lose, retarget, commit; one task each."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import BatonError, KvCorrupt, PeerLost
from core.handoff import SinkState
from core.work import Peer
from decode_worker.job import DecodeJob
from kv_transfer.errors import KvLost
from kv_transfer.fetch import FetchResult
from kv_transfer.sink import Sink
from rpc.status import our_error

logger = logging.getLogger(__name__)


class Fetches(Protocol):
    """What runs the decode end of one attempt; see kv_transfer.fetch.Fetcher."""

    async def run(
        self,
        sink: Sink,
        peer: Peer,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult: ...


class Ledger(Protocol):
    """Who is told what became of handoffs."""

    def committed(self, job: DecodeJob, result: FetchResult) -> None:
        """The KV is here, verified."""
        ...

    def kv_lost(self, job: DecodeJob, lost: KvLost) -> None:
        """This prefill cannot deliver; the reservation waits for another."""
        ...

    def failed(self, job: DecodeJob, error: BatonError) -> None:
        """It cannot go on here."""
        ...


class Incoming:
    """Runs one task per handoff; the parent of them all is `run`."""

    def __init__(
        self,
        *,
        fetches: Fetches,
        reserve: Callable[[Sink, DecodeJob], Awaitable[None]],
        ledger: Ledger,
        clock: Clock,
        config: HandoffConfig,
    ) -> None:
        self._fetches = fetches
        self._reserve = reserve
        self._ledger = ledger
        self._clock = clock
        self._config = config
        self._arrived: asyncio.Queue[DecodeJob] = asyncio.Queue()

    def begin(self, job: DecodeJob) -> None:
        """Receive this handoff; whoever accepted it has bounded how many there are."""
        self._arrived.put_nowait(job)

    async def run(self) -> None:
        """Start a task for each handoff, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                job = await self._arrived.get()
                if job.sink.state is not SinkState.ENDED:
                    job.task = group.create_task(self._receive(job), name="incoming")

    async def _receive(self, job: DecodeJob) -> None:
        try:
            result = await self._fetch(job)
            while result is None and job.sink.state is not SinkState.ENDED:
                result = await self._fetch(job)
        except BatonError as error:
            self._ledger.failed(job, error)
        except Exception as error:  # noqa: BLE001 - the edge of one handoff: others' KV is sound
            self._ledger.failed(job, our_error(error))
        else:
            if result is not None:
                self._ledger.committed(job, result)

    async def _fetch(self, job: DecodeJob) -> FetchResult | None:
        """One attempt; None when there may be another."""
        job.retargeted.clear()
        try:
            result = await self._attempt(job)
        except KvLost as lost:
            await self._outlive(job, lost)
            return None
        if result is not None and result.token.position != len(job.work.output_token_ids):
            raise KvCorrupt(
                f"first token at position {result.token.position}, "
                f"{len(job.work.output_token_ids)} tokens were forced"
            )
        return result

    async def _attempt(self, job: DecodeJob) -> FetchResult | None:
        """Fetch from where the job now points; None when a Retarget ended it."""
        try:
            async with asyncio.timeout(None) as job.attempt:
                return await self._fetches.run(
                    job.sink,
                    job.peer,
                    num_tokens=job.work.num_input_tokens,
                    reserve=lambda sink: self._reserve(sink, job),
                )
        except TimeoutError:
            if not job.retargeted.is_set():
                raise
            return None
        finally:
            job.attempt = None

    async def _outlive(self, job: DecodeJob, lost: KvLost) -> None:
        """Wait for a Retarget, unless it came already. Raises PeerLost when it does not come."""
        if job.sink.state is not SinkState.LOST:
            return
        logger.info("kv lost handoff_id=%s why=%s: %s", job.handoff_id, lost.why, lost)
        self._ledger.kv_lost(job, lost)
        wait_s = self._config.retarget_wait_s
        try:
            async with asyncio.timeout(wait_s):
                await job.retargeted.wait()
        except TimeoutError:
            job.sink.expire(self._clock.now_s(), 0.0)
            raise PeerLost(f"KV lost ({lost}); no new prefill for {wait_s} s") from lost
