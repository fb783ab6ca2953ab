"""The source's end of Fetch streams: gathers in threads and sends what credit allows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import BatonError
from core.ids import HandoffId
from core.request import Fence
from kv_transfer.source import Read, Reader, Source, SourceState
from tests.simulation.content import LAYOUT, digest, whole

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.prefill_node import PrefillNode


@dataclass(slots=True, eq=False)
class Stream:
    """One Fetch."""

    stream_id: int
    peer: "DecodeNode"
    reader: Reader
    source: Source
    salt: int = 0
    num_reads: int = 0
    is_end_sent: bool = False
    is_closed: bool = False

    def __str__(self) -> str:
        return f"stream{self.stream_id}"


class Sending:
    """All streams of one prefill instance."""

    def __init__(self, node: "PrefillNode") -> None:
        self._node = node
        self._streams: dict[int, Stream] = {}

    def __str__(self) -> str:
        return f"{self._node}.sending"

    def on_open(
        self, stream_id: int, handoff_id: HandoffId, fence: Fence, peer: "DecodeNode"
    ) -> bool | None:
        """A decode instance wants this handoff's KV."""
        node = self._node
        if stream_id in self._streams:
            return False
        max_bytes = node.world.ticks(8, 80)
        reader = node.world.parts.reader(fence, num_cached_tokens=0, max_segment_bytes=max_bytes)
        known = node.book.find(handoff_id)
        replaced = known.reader if known else None
        try:
            source = node.book.fetch(handoff_id, reader)
        except BatonError:
            node.network.send(peer, peer.fetching.on_lost, stream_id)
            return None
        if source is known and replaced is not None:
            self._close_readers(source)
        node.world.checks.reads(source)
        stream = self._streams[stream_id] = Stream(stream_id, peer, reader, source)
        if source.state is SourceState.AWAITED:
            node.watch(source)
        if source.frontier:
            self._announce(stream)
        node.world.rogue.toward_source(node, source)
        return None

    def announce(self, source: Source) -> None:
        """Its blocks are allocated."""
        for stream in self.of(source):
            self._announce(stream)

    def on_credit(self, stream_id: int, num_tokens: int) -> bool | None:
        """The sink has made room."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        stream.source.credit(stream.reader, num_tokens)
        self.pump(stream.source)
        return None

    def on_refetch(self, stream_id: int, index: int) -> bool | None:
        """A segment arrived damaged."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        try:
            stream.source.refetch(stream.reader, index)
        except BatonError:
            return False
        self.pump(stream.source)
        return None

    def on_lost(self, stream_id: int) -> bool | None:
        """The stream broke, or its sink closed it."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        before = stream.source.state
        stream.source.fetch_lost(stream.reader)
        stream.is_closed = True
        if before is SourceState.AWAITED and stream.source.state is SourceState.ENDED:
            self._node.ended(stream.source, was_awaited=True)
        return None

    def refuse(self, stream_id: int) -> None:
        """A renewal came too late."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._tell_lost(stream)

    def close(self, source: Source) -> None:
        """The source has ended: so do its streams."""
        self._close_readers(source)

    def pump(self, source: Source) -> None:
        """Start gathers for all that is computed and covered; at most two at a time."""
        for stream in self.of(source):
            if stream.reader is source.reader:
                self._pump(stream, source)

    def open_streams(self) -> list[Stream]:
        """Those that can break."""
        return [s for s in self._streams.values() if not s.is_closed]

    def _pump(self, stream: Stream, source: Source) -> None:
        node = self._node
        while stream.num_reads < 2 and source.state is not SourceState.ENDED:
            segment = stream.reader.next_segment(LAYOUT, source.frontier)
            if segment is None:
                break
            read = source.begin_read(segment)
            stream.num_reads += 1
            node.blocks.touch(read.block_ids)
            node.later(node.world.ticks(1, 24), self._read_done, stream, read)
        done = stream.reader.is_done(source.num_tokens) and not stream.num_reads
        if done and source.state is SourceState.LEASED and not stream.is_end_sent:
            self._send_end(stream, source)

    def _read_done(self, stream: Stream, read: Read) -> None:
        node, piece = self._node, read.segment.range
        values = node.blocks.memory.gather(read.block_ids, piece)
        stream.num_reads -= 1
        node.blocks.untouch(read.block_ids)
        is_intact = stream.source.end_read(read)
        if is_intact and stream.reader is stream.source.reader:
            node.world.checks.sent(stream.stream_id, piece.tokens.stop, stream.source.state)
            is_damaged = node.world.random() < node.world.profile.damage
            to, index = stream.peer.fetching, read.segment.index
            node.network.send(
                stream.peer, to.on_segment, stream.stream_id, index, piece, values, is_damaged
            )
        self.pump(stream.source)

    def _send_end(self, stream: Stream, source: Source) -> None:
        token = source.first_token
        if token is None:
            raise AssertionError("leased without a first token")
        stream.is_end_sent = True
        piece = whole(source.num_tokens)
        values = self._node.blocks.memory.gather(source.block_ids, piece)
        total, to = digest(values, piece), stream.peer.fetching
        self._node.network.send(
            stream.peer, to.on_end, stream.stream_id, total, token.position, stream.salt
        )

    def _announce(self, stream: Stream) -> None:
        stream.salt = self._node.salt_of(stream.source)
        to = stream.peer.fetching
        self._node.network.send(
            stream.peer, to.on_announce, stream.stream_id, stream.source.num_tokens
        )

    def of(self, source: Source) -> list[Stream]:
        """Those on which it can still send."""
        return [s for s in self._streams.values() if s.source is source and not s.is_closed]

    def _close_readers(self, source: Source) -> None:
        for stream in self.of(source):
            stream.is_closed = True
            self._tell_lost(stream)

    def _tell_lost(self, stream: Stream) -> None:
        self._node.network.send(stream.peer, stream.peer.fetching.on_lost, stream.stream_id)


