"""Segments from their frame into the sink's blocks: claimed, copied, checked, or asked again."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from core.failpoints import Failpoints
from core.kv_layout import KvRange
from core.request import Fence
from kv_transfer.carriers.contract import Inlet
from kv_transfer.copies import all_ended, within_blocks
from kv_transfer.digest import kv_digest
from kv_transfer.frames import piece_of
from kv_transfer.sink import Sink, Write
from kv_transfer.stores import KvStore
from kv_transfer.wire_format import WireFormat
from rpc.pb import kv_transfer_pb2 as pb

MAX_COPIES = 4
"""Segments received and not yet in their blocks; beyond, the stream is not read."""


@dataclass(slots=True)
class _InOrder:
    """Counts what has ended, up to the first that has not."""

    num_begun: int = 0
    num_ended: int = 0
    _early: set[int] = field(default_factory=set)

    def begin(self) -> int:
        """The next one's number."""
        self.num_begun += 1
        return self.num_begun - 1

    def end(self, number: int) -> None:
        """That one."""
        self._early.add(number)
        while self.num_ended in self._early:
            self._early.remove(self.num_ended)
            self.num_ended += 1


@dataclass(slots=True, kw_only=True)
class Landing:
    """All segments of one attempt. All but the copies runs on the event loop's thread."""

    sink: Sink
    attempt: Fence
    inlet: Inlet
    store: KvStore
    wire: WireFormat
    copies: Executor
    refetch: Callable[[int], None]
    """Ask for a damaged segment, by its index."""
    emptied: Callable[[int], None]
    """So many payloads are not needed any more."""
    landed: Callable[[BaseException | None], None]
    """A copy has ended; with an error of ours, if it failed."""
    failpoints: Failpoints
    damaged: set[int] = field(default_factory=set)
    """Segments asked for again and not here yet."""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COPIES))
    _copying: set["asyncio.Future[bool]"] = field(default_factory=set)
    _order: _InOrder = field(default_factory=_InOrder)

    @property
    def is_quiet(self) -> bool:
        """Nothing is being copied, nothing is asked for again."""
        return not self._copying and not self.damaged

    async def take(self, header: pb.SegmentHeader, inline: memoryview) -> None:
        """One segment's frame. Returns as soon as the next one can be taken. Raises PeerLost."""
        number = self._order.begin()
        piece = piece_of(header, self.attempt, self.sink.layout, self.sink.num_tokens)
        payload = await self._payload(header, inline)
        if piece is None or payload is None or payload.nbytes != self._num_bytes(piece):
            self._end(number)
            self._ask_again(header.index)
            return
        await self.failpoints.hit("kv.scatter")
        await self._slots.acquire()
        write = self.sink.begin_write(self.attempt, piece)
        if write is None:
            self._slots.release()
            self._end(number)
        else:
            self._copy(write, header, payload, number)

    async def misses_any(self) -> bool:
        """Whether a segment has to come again, once all that came have landed."""
        while self._copying:
            await asyncio.wait(set(self._copying))
        return bool(self.damaged)

    async def ended(self) -> None:
        """No copy outlives its attempt: the owner may do with the blocks as it likes."""
        await all_ended(set(self._copying))

    async def _payload(self, header: pb.SegmentHeader, inline: memoryview) -> memoryview | None:
        if inline.nbytes:
            return inline if inline.nbytes == header.num_bytes else None
        return await self.inlet.payload(header, inline)

    def _num_bytes(self, piece: KvRange) -> int:
        return self.wire.num_bytes(self.sink.layout, piece)

    def _ask_again(self, index: int) -> None:
        self.damaged.add(index)
        self.refetch(index)

    def _copy(
        self, write: Write, header: pb.SegmentHeader, payload: memoryview, number: int
    ) -> None:
        """Start a copy; its end is a callback, which unlike a task cannot be cancelled unborn."""
        copy = partial(self._land, write, payload, header.checksum)
        try:
            future = asyncio.get_running_loop().run_in_executor(self.copies, copy)
        except BaseException:
            self.sink.end_write(write, None)
            raise
        self._copying.add(future)
        future.add_done_callback(partial(self._landed, write, header, number))

    def _land(self, write: Write, payload: memoryview, checksum: int) -> bool:
        """In a copy thread: check, and scatter what is right."""
        layout, piece = self.sink.layout, write.range
        head_bytes = self.wire.head_bytes(layout)
        if checksum != kv_digest(
            payload, head_bytes=head_bytes, num_heads=layout.num_kv_heads, piece=piece
        ):
            return False
        tokens = within_blocks(piece, layout.block_size)
        stored = self.wire.decode(payload, layout)
        self.store.scatter(piece.layers, write.block_ids, tokens, stored)
        return True

    def _landed(
        self,
        write: Write,
        header: pb.SegmentHeader,
        number: int,
        future: "asyncio.Future[bool]",
    ) -> None:
        self._copying.discard(future)
        self._slots.release()
        failed = None if future.cancelled() else future.exception()
        right = not failed and not future.cancelled() and future.result()
        # Memory of the source may have been filled again while it was read.
        right = right and self.inlet.is_intact(header)
        self.sink.end_write(write, header.checksum if right else None)
        self._end(number)
        if right:
            self.damaged.discard(header.index)
        elif not failed and not future.cancelled():
            self._ask_again(header.index)
        self.landed(failed)

    def _end(self, number: int) -> None:
        self._order.end(number)
        if self.inlet.says_emptied:
            self.emptied(self._order.num_ended)
