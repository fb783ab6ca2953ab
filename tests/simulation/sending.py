"""The source's end of Fetch streams, as kv_transfer/send.py walks it, without its IO."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import BatonError
from core.handoff import SourceState
from core.request import Fence
from kv_transfer.book import Reading
from kv_transfer.source import Outcome, Read, Source
from tests.simulation.content import LAYOUT, Spec, digest, whole

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.prefill_node import PrefillNode

MAX_BYTES = 1024
"""What a reader takes in one segment; the source's own limit is lower."""


@dataclass(slots=True, eq=False)
class Stream:
    """One Fetch."""

    stream_id: int
    spec: Spec
    peer: "DecodeNode"
    context: AbstractContextManager[Reading]
    reading: Reading
    num_reads: int = 0
    is_announced: bool = False
    is_end_sent: bool = False
    is_closed: bool = False

    def __str__(self) -> str:
        return f"stream{self.stream_id}"


class Sending:
    """All streams of one prefill instance."""

    def __init__(self, node: "PrefillNode") -> None:
        self._node = node
        self._streams: dict[int, Stream] = {}
        """Those that are open."""
        self._opened: set[int] = set()

    def __str__(self) -> str:
        return f"{self._node}.sending"

    def on_open(self, stream_id: int, spec: Spec, fence: Fence, peer: "DecodeNode") -> bool | None:
        """A decode instance wants this handoff's KV."""
        node = self._node
        if stream_id in self._opened:
            return False
        self._opened.add(stream_id)
        context = node.book.reading(
            spec.handoff_id, fence, max_segment_bytes=MAX_BYTES
        )
        try:
            reading = context.__enter__()
        except BatonError:
            node.network.send(peer, peer.fetching.on_lost, stream_id)
            return None
        node.world.checks.reads(reading.source)
        self._streams[stream_id] = Stream(stream_id, spec, peer, context, reading)
        node.world.rogue.toward_source(node, reading.source)
        return None

    def on_credit(self, stream_id: int, num_tokens: int) -> bool | None:
        """The sink has made room."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        stream.reading.source.credit(stream.reading.reader, num_tokens)
        stream.reading.changed.set()
        return None

    def on_refetch(self, stream_id: int, index: int) -> bool | None:
        """A segment arrived damaged."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        try:
            stream.reading.source.refetch(stream.reading.reader, index)
        except BatonError:
            self._fail(stream)
        stream.reading.changed.set()
        return None

    def on_lost(self, stream_id: int) -> bool | None:
        """The stream broke, or its sink closed it."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        self._close(stream)
        return None

    def refuse(self, stream_id: int) -> None:
        """A renewal came too late."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._fail(stream)

    def wake(self) -> None:
        """Streams whose source has changed look at it: most at once, some a little later."""
        woken = [s for s in self._streams.values() if s.reading.changed.is_set()]
        for stream in woken:
            stream.reading.changed.clear()
        world = self._node.world
        for stream in woken:
            if world.random() < 0.2:
                self._node.later(world.ticks(1, 12), self._walk, stream)
            else:
                self._walk(stream)

    def of(self, source: Source) -> list[Stream]:
        """Those that read it, or did before another took over."""
        return [s for s in self._streams.values() if s.reading.source is source]

    def open_streams(self) -> list[Stream]:
        """Those that can break."""
        return list(self._streams.values())

    def _walk(self, stream: Stream) -> bool | None:
        if stream.is_closed:
            return False
        source = stream.reading.source
        if source.state is SourceState.ENDED and source.outcome is Outcome.COMMITTED:
            self._close(stream)
        elif source.state is SourceState.ENDED or not stream.reading.is_current:
            self._fail(stream)
        elif source.frontier:
            self._send(stream, source)
        return None

    def _send(self, stream: Stream, source: Source) -> None:
        """Announce, gather what is computed and covered (two at a time), end."""
        node, reader, peer = self._node, stream.reading.reader, stream.peer
        if not stream.is_announced:
            stream.is_announced = True
            told = peer.fetching.on_announce
            node.network.send(peer, told, stream.stream_id, source.num_tokens)
        while stream.num_reads < 2:
            segment = reader.next_segment(LAYOUT, source.frontier)
            if segment is None:
                break
            read = source.begin_read(segment)
            stream.num_reads += 1
            node.blocks.touch(read.block_ids)
            node.later(node.world.copy_ticks(), self._read_done, stream, read)
        is_whole = source.first_token is not None and reader.is_done(source.num_tokens)
        if is_whole and not stream.num_reads and not stream.is_end_sent:
            stream.is_end_sent = True
            self._send_end(stream, source)

    def _read_done(self, stream: Stream, read: Read) -> None:
        node, piece, source = self._node, read.segment.range, stream.reading.source
        values = node.blocks.memory.gather(read.block_ids, piece)
        stream.num_reads -= 1
        node.blocks.untouch(read.block_ids)
        if source.end_read(read) and not stream.is_closed:
            node.world.checks.sent(stream.stream_id, piece.tokens.stop, source.state)
            is_damaged = node.world.random() < node.world.profile.damage
            told, index = stream.peer.fetching.on_segment, read.segment.index
            args = (stream.stream_id, index, piece, values, is_damaged)
            node.network.send(stream.peer, told, *args)
        self._walk(stream)

    def _send_end(self, stream: Stream, source: Source) -> None:
        assert source.first_token is not None
        piece = whole(source.num_tokens)
        total = digest(self._node.blocks.memory.gather(source.block_ids, piece), piece)
        position, salt = source.first_token.position, stream.spec.salt(source.fence)
        told = stream.peer.fetching.on_end
        self._node.network.send(stream.peer, told, stream.stream_id, total, position, salt)

    def _fail(self, stream: Stream) -> None:
        """End a stream with an error for its reader."""
        self._node.network.send(stream.peer, stream.peer.fetching.on_lost, stream.stream_id)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        if not stream.is_closed:
            stream.is_closed = True
            del self._streams[stream.stream_id]
            stream.context.__exit__(None, None, None)
