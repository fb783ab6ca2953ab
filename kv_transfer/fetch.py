"""The decode end of all handoffs of one instance: runs fetches, and says what was committed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc.aio

from core.capability import CapabilityRefused
from core.errors import (
    BatonError,
    Incompatible,
    InvalidRequest,
    KvCorrupt,
    StaleFence,
    UnknownRequest,
    WrongState,
)
from core.failpoints import FailpointHit
from core.ids import HandoffId
from core.kv_layout import STORED
from core.request import Fence
from core.work import PROTOCOL_VERSION, KvLostReason, Peer
from kv_transfer.errors import KvLost, LeaseEnded
from kv_transfer.frames import Expected
from kv_transfer.kv_host import KvHost
from kv_transfer.leave import leave_of
from kv_transfer.receive import Receiver
from kv_transfer.result import FetchedToken as FetchedToken
from kv_transfer.result import FetchResult as FetchResult
from kv_transfer.sink import Sink
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

_LEASE_ERRORS = (
    LeaseEnded,
    StaleFence,
    UnknownRequest,
    WrongState,
    Incompatible,
    InvalidRequest,
    CapabilityRefused,
)


@dataclass(frozen=True, slots=True)
class _Lease:
    """What a fetch holds at its source."""

    peer: Peer
    handoff_id: HandoffId
    fence: Fence
    leave: pb.Leave


class Fetcher:
    """Runs the decode end of all handoffs of one instance."""

    def __init__(self, host: KvHost, dial: Callable[[str], grpc.aio.Channel]) -> None:
        self._host = host
        self._dial = dial
        self._num_fetches = 0
        self._releases: asyncio.Queue[_Lease] = asyncio.Queue(MAX_RELEASES)

    @property
    def num_fetches(self) -> int:
        """Attempts running now."""
        return self._num_fetches

    async def run(
        self,
        sink: Sink,
        peer: Peer,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """Fetch the KV of `num_tokens` tokens for `sink.fence` from `peer` and commit.

        `reserve(sink)` is awaited once the prefill has started; it returns after it called
        `sink.reserve(block_ids)` with what room there is, and is called again until the whole
        prompt has blocks. When this method returns or raises, no copy into the sink's blocks is
        running; so run one attempt at a time, and end its task before starting the next.

        There is no deadline in here before the prefill starts: cancel the task at the request's.

        Raises KvLost when this prefill cannot deliver (the sink is then LOST, unless it was
        retargeted or stopped meanwhile), and whatever `reserve` raises.
        """
        wire_format = self._host.config.wire_format
        expected = Expected(sink.layout, wire_format, num_tokens, num_tokens)
        return await self._run(sink, peer, self._opening(sink, peer), expected, reserve)

    async def run_prefix(
        self,
        sink: Sink,
        peer: Peer,
        *,
        token_ids: Sequence[int],
        tenant: str,
        max_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """Fetch what `peer` caches of the beginning of `token_ids`: `sink.num_tokens` tokens, from
        1 to `max_tokens`. Otherwise as `run`; KvLost where nothing is cached."""
        opening = self._opening(sink, peer)
        wanted = pb.PrefixWanted(token_ids=token_ids, tenant=tenant, max_tokens=max_tokens)
        opening.prefix.CopyFrom(wanted)
        # What is cached under an exact name has to be exact.
        opening.wire_format = STORED
        expected = Expected(sink.layout, STORED, 1, max_tokens)
        return await self._run(sink, peer, opening, expected, reserve)

    async def _run(
        self,
        sink: Sink,
        peer: Peer,
        opening: pb.FetchOpen,
        expected: Expected,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        lease = _Lease(peer, sink.handoff_id, sink.fence, leave_of(opening))
        self._num_fetches += 1
        try:
            result = await self._receive(lease, sink, opening, expected, reserve)
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
        opening: pb.FetchOpen,
        expected: Expected,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        try:
            call = fetch_call(self._dial(lease.peer.address))
        except BadAddress as error:
            raise KvLost(KvLostReason.PEER, str(error)) from None
        try:
            receiver = Receiver(
                sink=sink,
                expected=expected,
                call=call,
                source_id=lease.peer.instance_id,
                source_address=lease.peer.address,
                reserve=reserve,
                renew=lambda lease_ttl_s: self._renew(lease, lease_ttl_s),
                host=self._host,
            )
            return await receiver.run(opening)
        finally:
            call.cancel()

    def _opening(self, sink: Sink, peer: Peer) -> pb.FetchOpen:
        return pb.FetchOpen(
            handoff_id=sink.handoff_id,
            fence=fence_to_pb(sink.fence),
            fingerprint=self._host.fingerprint,
            protocol_version=PROTOCOL_VERSION,
            max_segment_bytes=self._host.config.max_segment_bytes,
            offers=self._host.carriers.offers(),
            capability=peer.capability,
            wire_format=self._host.config.wire_format,
            fetcher_id=self._host.instance_id,
        )

    def _lost(self, lease: _Lease, sink: Sink, error: BaseException) -> BaseException:
        """What to raise for `error`; the sink is told when this prefill is the one to blame."""
        if isinstance(error, grpc.RpcError):
            error = _kv_lost(error_from(error))
        if not isinstance(error, KvLost):
            return error
        sink.lose(lease.fence, self._host.clock.now_s())
        logger.info(
            "kv lost handoff_id=%s attempt=%s source=%s why=%s: %s",
            *(lease.handoff_id, lease.fence, lease.peer.instance_id, error.why, error),
        )
        return error

    async def _renew(self, lease: _Lease, lease_ttl_s: float) -> None:
        """Until cancelled. Raises KvLost when the lease has ended."""
        stub = KvTransferStub(self._dial(lease.peer.address))
        every_s = lease_ttl_s / 3
        request = pb.RenewRequest(
            handoff_id=lease.handoff_id, fence=fence_to_pb(lease.fence), leave=lease.leave
        )
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
        stub = KvTransferStub(self._dial(lease.peer.address))
        request = pb.ReleaseRequest(
            handoff_id=lease.handoff_id,
            fence=fence_to_pb(lease.fence),
            committed=True,
            leave=lease.leave,
        )
        for _ in range(RELEASE_TRIES):
            try:
                await self._host.failpoints.hit("kv.release")
                await stub.Release(request, timeout=RELEASE_TIMEOUT_S)
            except FailpointHit:
                continue
            except grpc.aio.AioRpcError as error:
                if _kv_lost(error_from(error)).why is KvLostReason.LEASE:
                    return  # ended already
            else:
                return
        logger.info(
            "lease left to expire handoff_id=%s source=%s", lease.handoff_id, lease.peer.address
        )


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
