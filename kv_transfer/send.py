"""The sending half of one Fetch stream: announce, segments against credits, end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from core.errors import BatonError, PeerLost, StaleFence, UnknownRequest
from core.handoff import SourceState
from kv_transfer.book import Reading
from kv_transfer.carriers.contract import CarrierUnusable, Outlet, Place
from kv_transfer.carriers.inline import INLINE, InlineOutlet
from kv_transfer.copies import run_to_end, within_blocks
from kv_transfer.digest import kv_digest
from kv_transfer.errors import LeaseEnded
from kv_transfer.frames import announce_of, end_checksum
from kv_transfer.kv_host import KvHost
from kv_transfer.source import NO_ATTEMPT, FirstToken, Outcome, Read, Segment, Source
from kv_transfer.wire_format import WireFormat
from rpc.convert import finish_reason_to_pb, logprobs_to_pb
from rpc.kv_wire import write_frame
from rpc.pb import kv_transfer_pb2 as pb

logger = logging.getLogger(__name__)

MAX_QUEUED_FRAMES = 2
"""Gathered while one is being written: enough to keep both busy; bounds memory per stream."""
BEATS_PER_TIMEOUT = 3
"""While there is nothing to send, an empty frame this often per progress timeout: a prefill that
queues, or a long chunk on a slow machine, is not a stalled link."""
_BEAT = write_frame(pb.FetchResponse())


class _End:
    """Stands in the queue for the last frame, whose times are known when its turn comes."""


@dataclass(frozen=True, slots=True)
class _Filled:
    """One segment, gathered."""

    outlet: Outlet
    header: pb.SegmentHeader
    place: Place
    frame: bytes
    num_stored_bytes: int
    """Of KV as it is in the blocks, whatever the wire format."""
    gather_s: float
    """Its checksum included."""


@dataclass(slots=True)
class _Times:
    """Moments of one stream, on this host's clock."""

    first_sent_at_s: float | None = None
    last_sent_at_s: float = 0.0
    credit_wait_s: float = 0.0

    def sent(self, now_s: float) -> None:
        self.first_sent_at_s = now_s if self.first_sent_at_s is None else self.first_sent_at_s
        self.last_sent_at_s = now_s

    def put(self, end: pb.FetchEnd, sampled_at_s: float) -> None:
        """The parts of the first gap that are this side's."""
        if self.first_sent_at_s is None:
            return
        tail_s = self.last_sent_at_s - sampled_at_s - self.credit_wait_s
        end.source_tail_s = max(0.0, tail_s)
        end.credit_wait_s = self.credit_wait_s
        end.first_segment_lead_s = max(0.0, sampled_at_s - self.first_sent_at_s)


@dataclass(slots=True, kw_only=True)
class Sender:
    """Walks one source for one reader. `write` takes a frame and returns when gRPC has room."""

    reading: Reading
    write: Callable[[bytes], Awaitable[None]]
    outlet: Outlet
    wire: WireFormat
    host: KvHost
    _frames: "asyncio.Queue[_Filled | bytes | _End]" = field(
        default_factory=lambda: asyncio.Queue(MAX_QUEUED_FRAMES)
    )
    _digest: int = 0
    _times: _Times = field(default_factory=_Times)

    async def run(self) -> None:
        """Send everything, then whatever is asked for again; returns when the reader committed.

        Raises the typed error that the reader is to be told.
        """
        if not await self._started():
            return
        await self._announce()
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write_frames())
            await self._gather_frames()
            writing.cancel()

    def fall_back(self, reason: str) -> None:
        """The reader cannot use the carrier: inline from here. It says so before any credit."""
        logger.info("carrier fallback carrier=%s why=%s", self.outlet.carrier, reason[:256])
        self._close_outlet()

    def emptied(self, num_segments: int) -> None:
        """The reader needs so many payloads no more."""
        self.outlet.emptied(num_segments)

    def close(self) -> None:
        """The stream has ended, and `run` with it."""
        self._close_outlet()

    def _close_outlet(self) -> None:
        closed, self.outlet = self.outlet, InlineOutlet()
        closed.close()

    async def _announce(self) -> None:
        host, num_tokens = self.host, self.reading.source.num_tokens
        lease_ttl_s = host.config.lease_ttl_s
        announce = announce_of(host.layout, num_tokens, lease_ttl_s, self.wire.name)
        announce.carrier = self.outlet.carrier
        self.outlet.announce(announce)
        await host.failpoints.hit("kv.announce")
        await self._write(write_frame(pb.FetchResponse(announce=announce)))
        if self.outlet.carrier == INLINE:
            return
        try:
            async with asyncio.timeout(self.host.config.progress_timeout_s):
                await self.outlet.attach()
        except (CarrierUnusable, TimeoutError) as error:
            # The reader will find the same, and both go on inline.
            self.fall_back(str(error) or "the reader did not come")

    async def _started(self) -> bool:
        """Wait until the prefill has its blocks. False: it ended well before."""
        while True:
            self.reading.changed.clear()
            if self._is_over():
                return False
            if self.reading.source.frontier:
                return True
            await self._changed_or_beat(self._write)

    async def _gather_frames(self) -> None:
        source, reader = self.reading.source, self.reading.reader
        end_queued = False
        while True:
            self.reading.changed.clear()
            if self._is_over():
                return
            if (segment := reader.next_segment(self.host.layout, source.frontier)) is not None:
                await self._send_segment(segment)
            elif not end_queued and source.first_token and reader.is_done(source.num_tokens):
                end_queued = True
                await self._frames.put(_End())
            else:
                await self._wait(source)

    def _is_over(self) -> bool:
        """Whether the handoff was committed. Raises if it ended otherwise, or for this reader."""
        source = self.reading.source
        if source.state is SourceState.ENDED:
            if source.outcome is Outcome.COMMITTED:
                return True
            raise _ended_badly(source)
        if not self.reading.is_current:
            raise StaleFence(f"{source.handoff_id}: a later Fetch took over")
        return False

    async def _wait(self, source: Source) -> None:
        """Until something changes; what is spent for want of credit is noted."""
        started_at_s = self.host.clock.now_s()
        token = source.first_token
        no_credit = token and self.reading.reader.waits_for_credit(source.frontier)
        await self._changed_or_beat(self._frames.put)
        if no_credit:
            self._times.credit_wait_s += self.host.clock.now_s() - started_at_s

    async def _changed_or_beat(self, say: Callable[[bytes], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self.host.config.progress_timeout_s / BEATS_PER_TIMEOUT):
                await self.reading.changed.wait()
        except TimeoutError:
            await say(_BEAT)

    async def _send_segment(self, segment: Segment) -> None:
        num_bytes = self.wire.num_bytes(self.host.layout, segment.range)
        place = await self._place(num_bytes)
        # While it waited, the source may have ended: its blocks are gone then.
        if self._is_over():
            return
        read = self.reading.source.begin_read(segment)
        intact = False
        try:
            gather = partial(self._gather, read, self.outlet, place)
            filled = await run_to_end(self.host.copies, gather)
        finally:
            intact = self.reading.source.end_read(read)
        # Otherwise its blocks were released meanwhile: the source has ended, as the loop will see.
        if intact:
            if not segment.resent:
                self._digest += filled.header.checksum
            await self._frames.put(filled)

    async def _place(self, num_bytes: int) -> Place:
        try:
            async with self._patience("emptied no segment"):
                return await self.outlet.place(num_bytes)
        except CarrierUnusable as error:
            # The host has no memory left for it, say.
            self.fall_back(str(error))
            return await self.outlet.place(num_bytes)

    def _gather(self, read: Read, outlet: Outlet, place: Place) -> _Filled:
        """In a copy thread: one segment's payload, checksum and frame."""
        began_at_s = self.host.clock.now_s()
        piece = read.segment.range
        tokens = within_blocks(piece, self.host.layout.block_size)
        if self.wire.is_stored:
            self.host.store.gather_into(piece.layers, read.block_ids, tokens, place.buffer)
        else:
            stored = memoryview(self.host.store.gather(piece.layers, read.block_ids, tokens))
            self.wire.encode(stored, place.buffer, self.host.layout)
        header = pb.SegmentHeader(
            index=read.segment.index,
            attempt=self.reading.reader.fence.attempt,
            layer_start=piece.layers.start,
            num_layers=len(piece.layers),
            token_start=piece.tokens.start,
            num_tokens=len(piece.tokens),
            head_start=0,
            num_heads=self.host.layout.num_kv_heads,
            num_bytes=place.buffer.nbytes,
            checksum=kv_digest(
                place.buffer,
                head_bytes=self.wire.head_bytes(self.host.layout),
                num_heads=self.host.layout.num_kv_heads,
                piece=piece,
            ),
        )
        frame = outlet.frame(header, place)
        gather_s = self.host.clock.now_s() - began_at_s
        return _Filled(outlet, header, place, frame, piece.num_bytes(self.host.layout), gather_s)

    async def _write_frames(self) -> None:
        while True:
            frame = await self._frames.get()
            if isinstance(frame, _Filled):
                began_at_s = self.host.clock.now_s()
                await self._write_filled(frame.frame)
                async with self._patience("took no payload"):
                    await frame.outlet.sent(frame.header, frame.place)
                self._times.sent(now_s := self.host.clock.now_s())
                send_s = now_s - began_at_s
                self.host.moving.moved(frame.num_stored_bytes, frame.gather_s + send_s)
            elif isinstance(frame, _End):
                token = self.reading.source.first_token
                assert token is not None, "the end is queued after the first token"
                await self.host.failpoints.hit("kv.send.end")
                await self._write(write_frame(pb.FetchResponse(end=self._end(token))))
            else:
                await self._write(frame)

    async def _write_filled(self, frame: bytes) -> None:
        await self.host.failpoints.hit("kv.send.frame")
        for passed in self.host.failpoints.pass_bytes("kv.send.frame", frame):
            await self._write(bytes(passed))

    def _end(self, token: FirstToken) -> pb.FetchEnd:
        end = pb.FetchEnd(
            digest=self._digest & (2**64 - 1),
            num_segments=self.reading.reader.num_segments,
            token_id=token.token_id,
            position=token.position,
            finish_reason=finish_reason_to_pb(token.finish_reason),
            logprobs=None if token.logprobs is None else logprobs_to_pb(token.logprobs),
        )
        self._times.put(end, token.sampled_at_s)
        end.checksum = end_checksum(end)
        return end

    async def _write(self, frame: bytes) -> None:
        async with self._patience("made no room for a frame"):
            await self.write(frame)

    @asynccontextmanager
    async def _patience(self, what: str) -> AsyncIterator[None]:
        """For one wait on the reader."""
        limit_s = self.host.config.progress_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise PeerLost(f"the reader {what} in {limit_s} s") from None


def _ended_badly(source: Source) -> BatonError:
    if source.fence == NO_ATTEMPT and source.outcome is Outcome.EXPIRED:
        return UnknownRequest(f"{source.handoff_id}: no Prefill call came in time")
    if source.outcome is Outcome.SUPERSEDED:
        return StaleFence(f"{source.handoff_id}: a later attempt took its place")
    return LeaseEnded(f"{source.handoff_id}: the lease ended, {source.outcome}")
