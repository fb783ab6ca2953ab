"""The decode end of all handoffs of one instance: runs fetches, and says what was committed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import grpc.aio

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import (
    BatonError,
    Incompatible,
    InvalidRequest,
    KvCorrupt,
    StaleFence,
    UnknownRequest,
    WrongState,
)
from core.ids import Fingerprint, HandoffId
from core.request import Fence
from core.work import PROTOCOL_VERSION, KvLostReason
from kv_transfer.errors import KvLost, LeaseEnded
from kv_transfer.receive import Receiver
from kv_transfer.result import FetchedToken as FetchedToken
from kv_transfer.result import FetchResult as FetchResult
from kv_transfer.sink import Sink
from kv_transfer.stores import KvStore
from rpc.convert import fence_to_pb
from rpc.dial import BadAddress
from rpc.kv_wire import fetch_call
from rpc.pb import kv_transfer_pb2 as pb
from rpc.pb.kv_transfer_pb2_grpc import KvTransferStub
from rpc.status import error_from

logger = logging.getLogger(__name__)

MAX_RELEASES = 4096
"""Waiting to be said; beyond, the newest is left to its lease's expiry."""
MAX_CONCURRENT_RELEASES = 32
"""So that a dead source does not hold up the others'."""
RELEASE_TRIES = 3
RELEASE_TIMEOUT_S = 1.0
"""Each try; a lease that outlives all of them costs its time, never a block."""

_LEASE_ERRORS = (LeaseEnded, StaleFence, UnknownRequest, WrongState, Incompatible, InvalidRequest)


@dataclass(frozen=True, slots=True)
class _Lease:
    """What a fetch holds at its source."""

    address: str
    handoff_id: HandoffId
    fence: Fence


class Fetcher:
    """Runs the decode end of all handoffs of one instance."""

    def __init__(
        self,
        *,
        store: KvStore,
        clock: Clock,
        config: HandoffConfig,
        copies: Executor,
        dial: Callable[[str], grpc.aio.Channel],
        fingerprint: Fingerprint,
    ) -> None:
        self._store = store
        self._clock = clock
        self._config = config
        self._copies = copies
        self._dial = dial
        self._fingerprint = fingerprint
        self._num_fetches = 0
        self._releases: asyncio.Queue[_Lease] = asyncio.Queue(MAX_RELEASES)

    @property
    def num_fetches(self) -> int:
        """Attempts running now."""
        return self._num_fetches

    async def run(
        self,
        sink: Sink,
        address: str,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """Fetch the KV of `num_tokens` tokens for `sink.fence` from `address` and commit.

        `reserve(sink)` is awaited once the prefill has started; it returns after it called
        `sink.reserve(block_ids)` with what room there is, and is called again until the whole
        prompt has blocks. When this method returns or raises, no copy into the sink's blocks is
        running; so run one attempt at a time, and end its task before starting the next.

        There is no deadline in here before the prefill starts: cancel the task at the request's.

        Raises KvLost when this prefill cannot deliver (the sink is then LOST, unless it was
        retargeted or stopped meanwhile), and whatever `reserve` raises.
        """
        lease = _Lease(address, sink.handoff_id, sink.fence)
        self._num_fetches += 1
        try:
            result = await self._receive(lease, sink, num_tokens, reserve)
        except BaseExceptionGroup as group:
            if _is_cancelled():
                raise asyncio.CancelledError from None
            raise self._lost(lease, sink, _first(group)) from None
        except (BatonError, grpc.RpcError) as error:
            raise self._lost(lease, sink, error) from None
        finally:
            self._num_fetches -= 1
        if not self._releases.full():
            self._releases.put_nowait(lease)
        return result

    async def run_releases(self) -> None:
        """Loop: tell the sources what was committed. Owned like `SourceBook.reap`."""
        slots = asyncio.Semaphore(MAX_CONCURRENT_RELEASES)
        async with asyncio.TaskGroup() as group:
            while True:
                lease = await self._releases.get()
                await slots.acquire()
                task = group.create_task(self._release(lease))
                task.add_done_callback(lambda _: slots.release())

    async def _receive(
        self,
        lease: _Lease,
        sink: Sink,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        try:
            call = fetch_call(self._dial(lease.address))
        except BadAddress as error:
            raise KvLost(KvLostReason.PEER, str(error)) from None
        try:
            receiver = Receiver(
                sink=sink,
                num_tokens=num_tokens,
                call=call,
                reserve=reserve,
                renew=lambda lease_ttl_s: self._renew(lease, lease_ttl_s),
                store=self._store,
                clock=self._clock,
                config=self._config,
                copies=self._copies,
            )
            await receiver.send(pb.FetchRequest(open=self._opening(lease)))
            return await receiver.run()
        finally:
            call.cancel()

    def _opening(self, lease: _Lease) -> pb.FetchOpen:
        return pb.FetchOpen(
            handoff_id=lease.handoff_id,
            fence=fence_to_pb(lease.fence),
            fingerprint=self._fingerprint,
            protocol_version=PROTOCOL_VERSION,
            max_segment_bytes=self._config.max_segment_bytes,
        )

    def _lost(self, lease: _Lease, sink: Sink, error: BaseException) -> BaseException:
        """What to raise for `error`; the sink is told when this prefill is the one to blame."""
        if isinstance(error, grpc.RpcError):
            error = _kv_lost(error_from(error))
        if not isinstance(error, KvLost):
            return error
        sink.lose(lease.fence, self._clock.now_s())
        logger.info(
            "kv lost handoff_id=%s attempt=%s source=%s why=%s: %s",
            *(lease.handoff_id, lease.fence, lease.address, error.why, error),
        )
        return error

    async def _renew(self, lease: _Lease, lease_ttl_s: float) -> None:
        """Until cancelled. Raises KvLost when the lease has ended."""
        stub = KvTransferStub(self._dial(lease.address))
        every_s = lease_ttl_s / 3
        request = pb.RenewRequest(handoff_id=lease.handoff_id, fence=fence_to_pb(lease.fence))
        while True:
            await asyncio.sleep(every_s)
            try:
                await stub.Renew(request, timeout=every_s)
            except grpc.aio.AioRpcError as error:
                lost = _kv_lost(error_from(error))
                # A source that cannot be reached now may be at the next turn, within the lease.
                if lost.why is KvLostReason.LEASE:
                    raise lost from None

    async def _release(self, lease: _Lease) -> None:
        stub = KvTransferStub(self._dial(lease.address))
        fence = fence_to_pb(lease.fence)
        request = pb.ReleaseRequest(handoff_id=lease.handoff_id, fence=fence, committed=True)
        for _ in range(RELEASE_TRIES):
            try:
                await stub.Release(request, timeout=RELEASE_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if _kv_lost(error_from(error)).why is KvLostReason.LEASE:
                    return  # ended already
            else:
                return
        logger.info("lease left to expire handoff_id=%s source=%s", lease.handoff_id, lease.address)


def _is_cancelled() -> bool:
    """A task group drops the cancel of its parent when a child failed at the same time."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the group; that of ours, when others came with it."""
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop(0)
        if isinstance(error, BaseExceptionGroup):
            rest = [*error.exceptions, *rest]
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, KvLost)), leaves[0])


def _kv_lost(error: BatonError) -> KvLost:
    """Why the KV cannot be had, from what the source answered."""
    if isinstance(error, _LEASE_ERRORS):
        return KvLost(KvLostReason.LEASE, str(error))
    if isinstance(error, KvCorrupt):
        return KvLost(KvLostReason.CORRUPT, str(error))
    return KvLost(KvLostReason.PEER, str(error))
