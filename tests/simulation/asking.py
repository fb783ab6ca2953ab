"""The asking end of a cached prefix: a prefill instance reads what a decode instance has of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.blocks import BlockState
from core.handoff import SinkState
from core.ids import HandoffId
from core.kv_layout import KvRange
from core.request import Fence
from kv_transfer.sink import Sink, Write
from tests.simulation.checks import RuleBroken
from tests.simulation.content import LAYOUT, digest
from tests.simulation.leaves import Leave
from tests.simulation.slots import InSlot, Payload

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.prefill_node import Job, PrefillNode
    from tests.simulation.sending import End

PATIENCE = 120
"""Ticks; then the prompt is computed."""


@dataclass(slots=True, eq=False)
class Asked:
    """One prefix on its way."""

    stream_id: int
    job: "Job"
    peer: "DecodeNode"
    sink: Sink
    max_tokens: int
    end: "End | None" = None

    def __str__(self) -> str:
        return f"prefix{self.stream_id}:{self.job}"


class PrefixFetching:
    """All of one prefill instance; whatever goes wrong, the prompt is computed."""

    def __init__(self, node: "PrefillNode") -> None:
        self._node = node
        self._asked: dict[int, Asked] = {}

    def __str__(self) -> str:
        return f"{self._node}.fetching"

    @property
    def num_asked(self) -> int:
        """On their way."""
        return len(self._asked)

    def begin(self, job: "Job", peer: "DecodeNode", leave: Leave) -> bool:
        """Ask for it, if more of it could be of use than is here; whether it did."""
        node, spec = self._node, job.spec
        chain = spec.names(job.num_tokens - 1)
        if node.blocks.hits(chain).num_blocks >= len(chain):
            return False
        stream_id = node.router.next_stream_id()
        sink = node.world.parts.sink(
            handoff_id=spec.handoff_id, layout=LAYOUT, blocks=node.blocks, fence=job.fence
        )
        max_tokens = len(chain) * LAYOUT.block_size
        asked = self._asked[stream_id] = Asked(stream_id, job, peer, sink, max_tokens)
        args = (stream_id, spec, job.fence, node, leave, max_tokens)
        node.network.send(peer, peer.sending.on_open, *args)
        node.later(PATIENCE, self._end_wait, asked)
        return True

    def cancel(self, handoff_id: HandoffId, fence: Fence) -> None:
        """The request has ended: so does this; the call is refused by the book's tombstone."""
        for asked in list(self._asked.values()):
            if asked.sink.handoff_id == handoff_id and asked.job.fence <= fence:
                self._node.world.seen["prefixes cancelled"] += 1
                self._finish(asked)

    def on_announce(self, stream_id: int, num_tokens: int) -> bool | None:
        """So much of it is there."""
        asked = self._asked.get(stream_id)
        if asked is None:
            return False
        if not 0 < num_tokens <= asked.max_tokens or not asked.sink.announce(num_tokens):
            return False
        self._reserve(asked, num_tokens)
        return None

    def on_segment(
        self, stream_id: int, index: int, piece: KvRange, payload: Payload, checksum: int
    ) -> bool | None:
        """A piece of it arrived."""
        asked = self._asked.get(stream_id)
        if asked is None:
            return False
        values = payload.read()
        if len(values) != len(piece.layers) * len(piece.tokens):
            return self._damaged(asked, index)
        if digest(values, piece) != checksum:
            return self._damaged(asked, index)
        node, write = self._node, asked.sink.begin_write(asked.job.fence, piece)
        if write is None:
            return False
        node.allocator.touch(write.block_ids)
        node.later(node.world.copy_ticks(), self._write_done, asked, write, payload, checksum)
        return None

    def on_end(self, stream_id: int, end: "End") -> bool | None:
        """All was sent."""
        asked = self._asked.get(stream_id)
        if asked is None:
            return False
        asked.sink.end(asked.job.fence, end.total)
        if asked.sink.state is SinkState.RECEIVING:
            asked.end = end
            self._commit_if_whole(asked)
        return None

    def on_lost(self, stream_id: int) -> bool | None:
        """Nothing is cached there, or the stream broke."""
        asked = self._asked.get(stream_id)
        return False if asked is None else self._finish(asked)

    def open_streams(self) -> list[Asked]:
        """Those that can break."""
        return list(self._asked.values())

    def _reserve(self, asked: Asked, num_tokens: int) -> None:
        """Only into plenty of room: it is no more than a help."""
        node, sink = self._node, asked.sink
        chain = asked.job.spec.names(num_tokens)
        hits = node.blocks.hits(chain)
        num_fresh = LAYOUT.num_blocks(num_tokens) - hits.num_blocks
        if not num_fresh or num_fresh > hits.num_free_after // 2:
            self._finish(asked)
            return
        cached = node.blocks.share(chain)
        node.world.checks.holds(node, asked.job.spec, cached)
        credit = sink.reserve(node.blocks.allocate(num_fresh, BlockState.INCOMING), cached)
        node.world.checks.granted(asked.stream_id, sink, credit)
        args = (asked.stream_id, credit, sink.num_cached_tokens)
        node.network.send(asked.peer, asked.peer.sending.on_credit, *args)

    def _write_done(self, asked: Asked, write: Write, payload: Payload, checksum: int) -> None:
        node = self._node
        values = payload.read()
        node.allocator.memory.scatter(write.block_ids, write.range, values)
        node.allocator.untouch(write.block_ids)
        is_intact = payload.is_intact()
        node.world.checks.counts(is_intact, digest(values, write.range), checksum)
        asked.sink.end_write(write, checksum if is_intact else None)
        if isinstance(payload, InSlot):
            args = (asked.stream_id, payload.slot, payload.generation)
            node.network.send(asked.peer, asked.peer.sending.on_emptied, *args)
        if not is_intact and asked.peer.sending.has_open(asked.stream_id):
            raise RuleBroken(f"a payload of {asked} was overwritten while it was read")
        if not is_intact:
            self._finish(asked)
        else:
            self._commit_if_whole(asked)

    def _damaged(self, asked: Asked, index: int) -> bool | None:
        node = self._node
        if not asked.sink.corrupt(asked.job.fence):
            return self._finish(asked)
        to = asked.peer.sending
        node.network.send(asked.peer, to.on_refetch, asked.stream_id, index)
        return None

    def _commit_if_whole(self, asked: Asked) -> None:
        node, sink, spec = self._node, asked.sink, asked.job.spec
        if not sink.is_whole:
            return
        if sink.commit():
            assert asked.end is not None
            node.world.checks.committed(node, spec, sink, asked.end)
            node.world.seen["prefixes fetched"] += 1
            block_ids = sink.hand_over()
            node.name_blocks(spec, block_ids, sink.num_tokens)
            node.blocks.release(block_ids, BlockState.OWNED)
        else:
            node.world.checks.lied(node.world.profile.rogue)
        self._finish(asked)

    def _end_wait(self, asked: Asked) -> bool | None:
        return self._finish(asked) if asked.stream_id in self._asked else False

    def _finish(self, asked: Asked) -> bool | None:
        """Once: from here on the prompt is as any other, with more hits perhaps."""
        if self._asked.pop(asked.stream_id, None) is None:
            return False
        asked.sink.stop()
        to = asked.peer.sending
        self._node.network.send(asked.peer, to.on_lost, asked.stream_id)
        self._node.accept(asked.job)
        return None
