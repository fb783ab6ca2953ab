"""The source's end of Fetch streams, as kv_transfer/send.py walks it, without its IO."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import BatonError
from core.handoff import SourceState
from core.ids import HandoffId
from core.request import Fence
from kv_transfer.book import Reading
from kv_transfer.source import Outcome, Read, Segment, Source
from tests.simulation.content import LAYOUT, TENANT, Spec, digest, whole
from tests.simulation.leaves import Leave
from tests.simulation.slots import Inline, Payload, Slot

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.network import Node
    from tests.simulation.prefill_node import PrefillNode

MAX_BYTES = 1024
"""What a reader takes in one segment; the source's own limit is lower."""


@dataclass(frozen=True, slots=True)
class End:
    """The last frame, and what only the checks may know."""

    total: int
    position: int
    salt: int
    """Of the attempt that computed it."""
    num_hit_tokens: int
    """Which others have computed."""


@dataclass(slots=True, eq=False)
class Stream:
    """One Fetch."""

    stream_id: int
    spec: Spec
    peer: "DecodeNode | PrefillNode"
    context: AbstractContextManager[object]
    reading: Reading
    is_prefix: bool = False
    pending: Segment | None = None
    """To be gathered as soon as there is a slot for it."""
    num_reads: int = 0
    is_announced: bool = False
    is_end_sent: bool = False
    is_closed: bool = False

    def __str__(self) -> str:
        return f"stream{self.stream_id}"


class Sending:
    """All streams of one instance."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._streams: dict[int, Stream] = {}
        """Those that are open."""
        self._opened: set[int] = set()
        self._shelf = node.world.parts.shelf(node.book, node.blocks, node.world.clock)
        self._gate = node.world.parts.gate()
        self._slots = node.world.parts.slots()
        self.num_hit_tokens: dict[tuple[HandoffId, Fence], int] = {}
        """Of each prefill here."""

    def __str__(self) -> str:
        return f"{self._node}.sending"

    def on_open(
        self,
        stream_id: int,
        spec: Spec,
        fence: Fence,
        peer: "DecodeNode | PrefillNode",
        leave: Leave,
        max_tokens: int | None = None,
    ) -> bool | None:
        """An instance wants this handoff's KV, or with `max_tokens` what of it is cached here."""
        node, is_prefix = self._node, max_tokens is not None
        if stream_id in self._opened:
            return False
        self._opened.add(stream_id)
        wanted = Leave(spec.handoff_id, fence, node.name, peer.name, is_prefix)
        if not self._gate.admits(leave, wanted):
            node.world.seen["refused without leave"] += 1
            node.network.send(peer, peer.fetching.on_lost, stream_id)
            return None
        node.world.checks.admitted(wanted)
        with ExitStack() as stack:
            try:
                if max_tokens is not None:
                    self._lend(stack, spec, fence, max_tokens)
                reading = stack.enter_context(
                    node.book.reading(spec.handoff_id, fence, max_segment_bytes=MAX_BYTES)
                )
            except BatonError:
                node.network.send(peer, peer.fetching.on_lost, stream_id)
                return None
            context = stack.pop_all()
        node.world.checks.reads(reading.source)
        self._streams[stream_id] = Stream(stream_id, spec, peer, context, reading, is_prefix)
        node.world.rogue.toward_source(node, reading.source)
        return None

    def on_credit(self, stream_id: int, num_tokens: int, num_cached: int) -> bool | None:
        """The sink has made room."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        stream.reading.source.credit(stream.reading.reader, num_tokens, num_cached)
        stream.reading.changed.set()
        return None

    def on_emptied(self, stream_id: int, slot: Slot, generation: int) -> bool | None:
        """A payload was scattered."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        self._slots.emptied(stream_id, slot, generation)
        # Others may wait for its place, too.
        for other in self._streams.values():
            other.reading.changed.set()
        return None

    def on_release(self, handoff_id: HandoffId, fence: Fence, committed: bool) -> bool | None:
        """A lease is no longer wanted, by the reader or by the router."""
        node = self._node
        try:
            node.book.release(handoff_id, fence, committed=committed)
        except BatonError:
            return False
        node.world.checks.ended(f"{node} source", handoff_id, fence, node.world.now_s)
        return None

    def on_renew(self, handoff_id: HandoffId, fence: Fence, stream_id: int) -> None:
        """A reader needs more time."""
        try:
            self._node.book.renew(handoff_id, fence)
        except BatonError:
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._fail(stream)

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

    def has_open(self, stream_id: int) -> bool:
        """It has not been taken for dead."""
        return stream_id in self._streams

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
            segment = stream.pending or reader.next_segment(LAYOUT, source.frontier)
            if segment is None:
                break
            stream.pending, slot = None, None
            if node.world.profile.has_slots:
                slot = self._slots.place(stream.stream_id)
                if slot is None:
                    node.world.seen["waits for a slot"] += 1
                    stream.pending = segment
                    break
            read = source.begin_read(segment)
            stream.num_reads += 1
            node.allocator.touch(read.block_ids)
            node.later(node.world.copy_ticks(), self._read_done, stream, read, slot)
        is_whole = source.first_token is not None and reader.is_done(source.num_tokens)
        if is_whole and stream.pending is None and not stream.num_reads and not stream.is_end_sent:
            stream.is_end_sent = True
            self._send_end(stream, source)

    def _read_done(self, stream: Stream, read: Read, slot: Slot | None) -> None:
        node, piece, source = self._node, read.segment.range, stream.reading.source
        values = node.allocator.memory.gather(read.block_ids, piece)
        stream.num_reads -= 1
        node.allocator.untouch(read.block_ids)
        payload: Payload = Inline(values)
        if slot is not None:
            self._slots.filled(slot, values)
            payload = node.world.parts.in_slot(slot, slot.generation, len(values))
        if source.end_read(read) and not stream.is_closed:
            is_held = all(node.allocator.num_holders(i) for i in read.block_ids)
            node.world.checks.sent(stream.stream_id, piece.tokens, is_held)
            is_damaged = node.world.random() < node.world.profile.damage
            checksum = digest(values, piece) ^ is_damaged
            told, index = stream.peer.fetching.on_segment, read.segment.index
            node.network.send(stream.peer, told, stream.stream_id, index, piece, payload, checksum)
        self._walk(stream)

    def _send_end(self, stream: Stream, source: Source) -> None:
        assert source.first_token is not None
        node, num_cached = self._node, stream.reading.reader.num_cached_tokens
        piece = whole(source.num_tokens, num_cached)
        block_ids = source.block_ids[num_cached // LAYOUT.block_size :]
        key = (source.handoff_id, source.fence)
        end = End(
            total=digest(node.allocator.memory.gather(block_ids, piece), piece),
            position=source.first_token.position,
            salt=stream.spec.salt(source.fence),
            num_hit_tokens=source.num_tokens if stream.is_prefix else self.num_hit_tokens[key],
        )
        node.network.send(stream.peer, stream.peer.fetching.on_end, stream.stream_id, end)

    def _lend(self, stack: ExitStack, spec: Spec, fence: Fence, max_tokens: int) -> None:
        node, tokens = self._node, spec.tokens[:max_tokens]
        source = stack.enter_context(
            self._shelf.lend(
                spec.handoff_id, fence, token_ids=tokens, tenant=TENANT, max_tokens=max_tokens
            )
        )
        node.world.seen["prefixes lent"] += 1
        node.world.checks.taken_up(f"{node} source", spec.handoff_id, fence, node.world.now_s)
        node.world.checks.holds(node, spec, source.block_ids)

    def _fail(self, stream: Stream) -> None:
        """End a stream with an error for its reader."""
        self._node.network.send(stream.peer, stream.peer.fetching.on_lost, stream.stream_id)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        if not stream.is_closed:
            stream.is_closed = True
            del self._streams[stream.stream_id]
            self._slots.closed(stream.stream_id)
            stream.context.__exit__(None, None, None)
            if stream.is_prefix:
                self._node.world.checks.ended_loan(stream.reading.source)
