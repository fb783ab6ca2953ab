"""The receiving half of one Fetch stream: credits, verified segments, commit."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import grpc.aio

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import IllegalTransition, InvalidRequest
from core.handoff import SinkState
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.copies import all_ended, within_blocks
from kv_transfer.digest import kv_digest, segment_checksum
from kv_transfer.errors import KvLost
from kv_transfer.frames import Arrived, check_announce, piece_of, result_of
from kv_transfer.result import FetchResult
from kv_transfer.sink import Sink, Write
from kv_transfer.stores import KvStore
from rpc.codec import Undecodable
from rpc.kv_wire import FetchCall, FetchFrame
from rpc.pb import kv_transfer_pb2 as pb

MAX_COPIES = 4
"""Segments received and not yet in their blocks; beyond, the stream is not read."""


@dataclass(slots=True, kw_only=True)
class Receiver:
    """Walks one sink through one attempt. All but the scatters runs on the event loop's thread."""

    sink: Sink
    num_tokens: int
    call: FetchCall
    reserve: Callable[[Sink], Awaitable[None]]
    renew: Callable[[float], Awaitable[None]]
    """Keeps the lease alive, given its time, until cancelled. Raises KvLost."""
    store: KvStore
    clock: Clock
    config: HandoffConfig
    copies: Executor
    attempt: Fence = field(init=False)
    _committed: "asyncio.Future[FetchResult]" = field(init=False)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COPIES))
    _copying: set["asyncio.Future[int]"] = field(default_factory=set)
    _damaged: set[int] = field(default_factory=set)
    """Segments asked for again and not here yet."""
    _arrived: Arrived = field(default_factory=Arrived)
    _end: pb.FetchEnd | None = None
    _read_limit: asyncio.Timeout | None = None
    """Of the read under way."""
    _all_granted: bool = False

    def __post_init__(self) -> None:
        self.attempt = self.sink.fence
        self._committed = asyncio.get_running_loop().create_future()

    async def run(self) -> FetchResult:
        """Receive and commit. Raises KvLost, what `reserve` raises, grpc's errors; in groups."""
        try:
            async with asyncio.TaskGroup() as group:
                receiving = group.create_task(self._receive())
                result = await self._committed
                receiving.cancel()
            return result
        finally:
            # No copy outlives its attempt: the owner may do with the blocks as it likes.
            self._committed.cancel()
            await all_ended({*self._copying, self._committed})

    async def _receive(self) -> None:
        announce = await self._announced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._grant())
            renewing = group.create_task(self._renewed(announce.lease_ttl_s))
            while self._end is None or self._damaged:
                await self._take(await self._read())
            # All is here but for copies under way: from now on the source may die.
            renewing.cancel()

    async def _renewed(self, lease_ttl_s: float) -> None:
        await self.renew(lease_ttl_s)

    async def _announced(self) -> pb.Announce:
        """The first frame. Without a limit: the prefill may queue as long as the request may."""
        frame = await self._read()
        announce = check_announce(frame.message, self.sink.layout, self.num_tokens)
        self._check_attempt()
        self.sink.announce(self.num_tokens)
        return announce

    async def _grant(self) -> None:
        """Credit as room is made, until the whole prompt has blocks."""
        credit = 0
        while credit < self.num_tokens:
            self._check_attempt()
            if self.sink.num_missing_blocks or not self.sink.can_reserve:
                await self.reserve(self.sink)
            else:
                # Retargeted: the blocks are here already.
                self.sink.reserve(())
            self._check_attempt()
            before, room = credit, len(self.sink.block_ids) * self.sink.layout.block_size
            credit = min(self.num_tokens, room)
            if credit <= before or self.sink.state is not SinkState.RECEIVING:
                raise IllegalTransition(f"{self.sink.handoff_id}: reserve() made no room")
            await self.send(pb.FetchRequest(credit=pb.Credit(num_tokens=credit)))
        self._all_granted = True
        self._limit_read()

    async def send(self, request: pb.FetchRequest) -> None:
        # When the stream has ended, the read under way says why.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(request)

    async def _read(self) -> FetchFrame:
        limit_s = self.config.progress_timeout_s
        try:
            async with asyncio.timeout(None) as self._read_limit:
                self._limit_read()
                frame = await self.call.read()
        except TimeoutError:
            raise KvLost(KvLostReason.STALLED, f"no frame in {limit_s} s") from None
        finally:
            self._read_limit = None
        if isinstance(frame, Undecodable):
            raise KvLost(KvLostReason.CORRUPT, str(frame.error))
        if not isinstance(frame, FetchFrame):
            raise KvLost(KvLostReason.LEASE, "the source closed the stream early")
        return frame

    def _limit_read(self) -> None:
        """The source owes frames once everything is credited; before, it may wait for us."""
        if self._all_granted and self._read_limit is not None:
            now_s = asyncio.get_running_loop().time()
            self._read_limit.reschedule(now_s + self.config.progress_timeout_s)

    async def _take(self, frame: FetchFrame) -> None:
        self._check_attempt()
        kind = frame.message.WhichOneof("message")
        if kind == "segment":
            await self._take_segment(frame.message.segment, frame.payload)
        elif kind == "end" and self._end is None:
            self._end = end = frame.message.end
            self._arrived.last_at_s = self.clock.now_s()
            # Checked before anything rests on it: a commit cannot be taken back.
            self._result(end)
            self.sink.end(self.attempt, end.digest)
            self._settle()
        # Else a beat, which has done its work by arriving, or a repetition.

    def _check_attempt(self) -> None:
        if self.sink.fence != self.attempt or self.sink.state is SinkState.ENDED:
            raise KvLost(KvLostReason.LEASE, f"{self.attempt} ended while its stream was open")

    async def _take_segment(self, header: pb.SegmentHeader, payload: memoryview) -> None:
        self._arrived.add(payload.nbytes, self.clock.now_s())
        piece = piece_of(header, self.attempt, self.sink.layout, self.num_tokens)
        # On the loop's thread: a hop to another costs as much as this sum.
        whole = (
            piece is not None
            and payload.nbytes == piece.num_bytes(self.sink.layout)
            and segment_checksum(payload) == header.checksum
        )
        if piece is None or not whole:
            await self._refetch(header.index)
            return
        self._damaged.discard(header.index)
        await self._slots.acquire()
        write = self.sink.begin_write(self.attempt, piece)
        if write is None:
            self._slots.release()
        else:
            self._scatter(write, payload)

    async def _refetch(self, index: int) -> None:
        if not self.sink.corrupt(self.attempt):
            self._check_attempt()
            limit = self.config.max_refetches
            raise KvLost(KvLostReason.CORRUPT, f"more than {limit} segments were damaged")
        self._damaged.add(index)
        await self.send(pb.FetchRequest(refetch=pb.Refetch(index=index)))

    def _scatter(self, write: Write, payload: memoryview) -> None:
        """Start a copy; its end is a callback, which unlike a task cannot be cancelled unborn."""
        copy = partial(self._copy, write, payload)
        try:
            future = asyncio.get_running_loop().run_in_executor(self.copies, copy)
        except BaseException:
            self.sink.end_write(write, None)
            raise
        self._copying.add(future)
        future.add_done_callback(partial(self._scattered, write))

    def _copy(self, write: Write, payload: memoryview) -> int:
        """In a copy thread."""
        tokens = within_blocks(write.range, self.sink.layout.block_size)
        self.store.scatter(write.range.layers, write.block_ids, tokens, payload)
        return kv_digest(payload, self.sink.layout, write.range)

    def _scattered(self, write: Write, future: "asyncio.Future[int]") -> None:
        self._copying.discard(future)
        self._slots.release()
        failed = None if future.cancelled() else future.exception()
        self.sink.end_write(write, None if failed or future.cancelled() else future.result())
        if failed is not None:
            self._fail(failed)
        else:
            self._settle()

    def _settle(self) -> None:
        """Commit when everything is here, at once: after a wait it could be another attempt's."""
        if self._end is None or self._copying or self._damaged or self._committed.done():
            return
        if self.sink.fence != self.attempt or self.sink.state is not SinkState.RECEIVING:
            return
        if not self.sink.is_whole:
            self._fail(KvLost(KvLostReason.CORRUPT, "segments are missing at the end"))
        elif not self.sink.commit():
            self.sink.lost_at_s = self.clock.now_s()
            self._fail(KvLost(KvLostReason.CORRUPT, "the digest of the whole is wrong"))
        else:
            self._committed.set_result(self._result(self._end))

    def _result(self, end: pb.FetchEnd) -> FetchResult:
        try:
            return result_of(
                end,
                self._arrived,
                num_tokens=self.num_tokens,
                committed_at_s=self.clock.now_s(),
            )
        except InvalidRequest as error:
            raise KvLost(KvLostReason.CORRUPT, str(error)) from None

    def _fail(self, error: BaseException) -> None:
        if not self._committed.done():
            self._committed.set_exception(error)
