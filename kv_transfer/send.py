"""The sending half of one Fetch stream: announce, segments against credits, end."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import BatonError, PeerLost, StaleFence, UnknownRequest
from core.handoff import SourceState
from core.kv_layout import KvLayout
from kv_transfer.book import Reading
from kv_transfer.copies import run_to_end, within_blocks
from kv_transfer.digest import kv_digest, segment_checksum
from kv_transfer.errors import LeaseEnded
from kv_transfer.frames import announce_of
from kv_transfer.source import NO_ATTEMPT, FirstToken, Outcome, Read, Segment, Source
from kv_transfer.stores import KvStore
from rpc.convert import finish_reason_to_pb, logprobs_to_pb
from rpc.kv_wire import write_frame
from rpc.pb import kv_transfer_pb2 as pb

MAX_QUEUED_FRAMES = 2
"""Gathered while one is being written: enough to keep both busy; bounds memory per stream."""
BEATS_PER_TIMEOUT = 3
"""While a prefill computes and has nothing to send, an empty frame this often per progress
timeout: a long chunk on a slow machine is not a stalled link."""
_BEAT = write_frame(pb.FetchResponse())


class _End:
    """Stands in the queue for the last frame, whose times are known when its turn comes."""


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
    store: KvStore
    layout: KvLayout
    clock: Clock
    config: HandoffConfig
    copies: Executor
    _frames: "asyncio.Queue[bytes | _End]" = field(
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
        num_tokens = self.reading.source.num_tokens
        announce = announce_of(self.layout, num_tokens, self.config.lease_ttl_s)
        await self._write(write_frame(pb.FetchResponse(announce=announce)))
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write_frames())
            await self._gather_frames()
            writing.cancel()

    async def _started(self) -> bool:
        """Wait until the prefill has its blocks. False: it ended well before."""
        while True:
            self.reading.changed.clear()
            if self._is_over():
                return False
            if self.reading.source.frontier:
                return True
            await self.reading.changed.wait()

    async def _gather_frames(self) -> None:
        source, reader = self.reading.source, self.reading.reader
        end_queued = False
        while True:
            self.reading.changed.clear()
            if self._is_over():
                return
            if (segment := reader.next_segment(self.layout, source.frontier)) is not None:
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
        started_at_s = self.clock.now_s()
        token = source.first_token
        no_credit = token and self.reading.reader.waits_for_credit(source.frontier)
        try:
            async with asyncio.timeout(self.config.progress_timeout_s / BEATS_PER_TIMEOUT):
                await self.reading.changed.wait()
        except TimeoutError:
            if token is None:
                await self._frames.put(_BEAT)
        if no_credit:
            self._times.credit_wait_s += self.clock.now_s() - started_at_s

    async def _send_segment(self, segment: Segment) -> None:
        read = self.reading.source.begin_read(segment)
        intact = False
        try:
            frame, digest = await run_to_end(self.copies, partial(self._gather, read))
        finally:
            intact = self.reading.source.end_read(read)
        # Otherwise its blocks were released meanwhile: the source has ended, as the loop will see.
        if intact:
            if not segment.resent:
                self._digest += digest
            await self._frames.put(frame)

    def _gather(self, read: Read) -> tuple[bytes, int]:
        """In a copy thread: one segment's frame and digest."""
        piece = read.segment.range
        tokens = within_blocks(piece, self.layout.block_size)
        payload = memoryview(self.store.gather(piece.layers, read.block_ids, tokens))
        header = pb.SegmentHeader(
            index=read.segment.index,
            attempt=self.reading.reader.fence.attempt,
            layer_start=piece.layers.start,
            num_layers=len(piece.layers),
            token_start=piece.tokens.start,
            num_tokens=len(piece.tokens),
            head_start=0,
            num_heads=self.layout.num_kv_heads,
            checksum=segment_checksum(payload),
        )
        frame = write_frame(pb.FetchResponse(segment=header), payload)
        return frame, kv_digest(payload, self.layout, piece)

    async def _write_frames(self) -> None:
        while True:
            frame = await self._frames.get()
            token = self.reading.source.first_token
            if isinstance(frame, _End):
                assert token is not None, "the end is queued after the first token"
                await self._write(write_frame(pb.FetchResponse(end=self._end(token))))
            else:
                await self._write(frame)
                if frame is not _BEAT:
                    self._times.sent(self.clock.now_s())

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
        return end

    async def _write(self, frame: bytes) -> None:
        limit_s = self.config.progress_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self.write(frame)
        except TimeoutError:
            raise PeerLost(f"the reader made no room for a frame in {limit_s} s") from None


def _ended_badly(source: Source) -> BatonError:
    if source.fence == NO_ATTEMPT and source.outcome is Outcome.EXPIRED:
        return UnknownRequest(f"{source.handoff_id}: no Prefill call came in time")
    if source.outcome is Outcome.SUPERSEDED:
        return StaleFence(f"{source.handoff_id}: a later attempt took its place")
    return LeaseEnded(f"{source.handoff_id}: the lease ended, {source.outcome}")
