"""The rules of the handoff that are judged from outside the machines under test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.blocks import leak_report
from core.errors import BatonError
from core.handoff import SourceState
from core.ids import HandoffId
from core.request import Fence
from engine.block_allocator import BlockAllocator, IntegrityError
from kv_transfer.sink import Sink
from kv_transfer.source import Source
from tests.simulation.content import LAYOUT, Spec, cells, meanings, whole
from tests.simulation.leaves import Leave
from tests.simulation.profile import LEASE, TICK_S

if TYPE_CHECKING:
    from tests.simulation.network import Node
    from tests.simulation.sending import End


class RuleBroken(AssertionError):
    """A rule of the handoff does not hold."""


class Checks:
    """What was seen so far, as far as rules need it."""

    def __init__(self) -> None:
        self._committed: set[tuple[str, HandoffId, Fence]] = set()
        self._owners: dict[tuple[HandoffId, Fence], str] = {}
        self._fences: dict[tuple[str, HandoffId], Fence] = {}
        self._over: dict[tuple[str, HandoffId], tuple[Fence, float]] = {}
        """Place → what was ended there, and until when that is remembered."""
        self._granted: dict[int, tuple[int, int]] = {}
        """Stream → tokens that its sink has room for, and those that it has already."""
        self._leaves: set[Leave] = set()

    def raised_fence(self, where: str, handoff_id: HandoffId, fence: Fence) -> None:
        """A place has taken up a new fence: never a lower one than before."""
        before = self._fences.get((where, handoff_id))
        if before is not None and fence < before:
            raise RuleBroken(f"{where}: {handoff_id} went back from {before} to {fence}")
        self._fences[where, handoff_id] = fence

    def ended(self, where: str, handoff_id: HandoffId, fence: Fence, now_s: float) -> None:
        """A call has ended this attempt and all earlier ones at a place."""
        before = self._over.get((where, handoff_id))
        if before is None or before[0] <= fence:
            self._over[where, handoff_id] = (fence, now_s + LEASE * TICK_S)

    def taken_up(self, where: str, handoff_id: HandoffId, fence: Fence, now_s: float) -> None:
        """A place begins to work for an attempt: it was not ended there before."""
        self.raised_fence(where, handoff_id, fence)
        last, until_s = self._over.get((where, handoff_id), (None, 0.0))
        if last is not None and fence <= last and now_s < until_s:
            raise RuleBroken(f"{where}: {handoff_id} {fence} was taken up after {last} ended")

    def granted(self, stream_id: int, sink: Sink, num_tokens: int) -> None:
        """A credit leaves the sink: it must be backed by blocks."""
        if num_tokens > len(sink.block_ids) * LAYOUT.block_size:
            raise RuleBroken(f"credit of {num_tokens} tokens for {len(sink.block_ids)} blocks")
        before, _ = self._granted.get(stream_id, (0, 0))
        self._granted[stream_id] = (max(num_tokens, before), sink.num_cached_tokens)

    def gave_room(self, sink: Sink, num_free: int, num_growing: int) -> None:
        """A handoff got room: for all of it, and running answers can grow by a block each."""
        if sink.num_missing_blocks:
            raise RuleBroken(f"{sink.handoff_id}: {sink.num_missing_blocks} blocks are missing")
        if num_free < num_growing:
            raise RuleBroken(f"{num_free} blocks are free for {num_growing} growing answers")

    def alone(self, sink: Sink, writing: Sequence[Fence]) -> None:
        """A credit leaves the sink: nobody of an earlier attempt writes to its blocks."""
        if any(fence != sink.fence for fence in writing):
            raise RuleBroken(f"{sink.handoff_id}: {writing} still write as {sink.fence} begins")

    def counts(self, is_counted: bool, copied: int, checksum: int) -> None:
        """A segment is in its blocks: it counts only if the copy read what had been checked."""
        if is_counted and copied != checksum:
            raise RuleBroken("a payload was overwritten during its copy, and counts")

    def lied(self, rogue: float) -> None:
        """The digest of the whole is wrong: somebody has sent what is not so."""
        if not rogue:
            raise RuleBroken("a digest is wrong though everybody is honest")

    def sent(self, stream_id: int, tokens: range, is_held: bool) -> None:
        """A segment leaves the source: credit must cover it, its reader lack it, and somebody hold
        its blocks still (if not this lease, others that share them)."""
        stop, num_cached = self._granted.get(stream_id, (0, 0))
        if tokens.stop > stop:
            raise RuleBroken(f"stream {stream_id}: sent {tokens} beyond its credit")
        if tokens.start < num_cached:
            raise RuleBroken(f"stream {stream_id}: sent {tokens}, {num_cached} are cached there")
        if not is_held:
            raise RuleBroken(f"stream {stream_id}: sent {tokens} after the lease has ended")

    def accepted_prefill(self, source: Source) -> None:
        """A Prefill call was taken up: nobody of an older attempt or a newer router reads it."""
        self.reads(source)
        if source.reader is not None and source.reader.fence.epoch > source.fence.epoch:
            raise RuleBroken(f"{source.fence} computes though {source.reader.fence} was here")

    def reads(self, source: Source) -> None:
        """Nobody of an earlier attempt reads."""
        if source.reader is None or source.state is SourceState.AWAITED:
            return
        if source.reader.fence < source.fence:
            raise RuleBroken(f"{source.reader.fence} reads what {source.fence} computes")

    def gave_leave(self, leave: Leave) -> None:
        """The router lets an instance fetch."""
        self._leaves.add(leave)

    def admitted(self, wanted: Leave) -> None:
        """A source lets somebody read: the router must have meant just that."""
        if wanted not in self._leaves:
            raise RuleBroken(f"no leave was given for {wanted}")

    def ended_loan(self, source: Source) -> None:
        """The reader of a cached prefix has gone: nobody else knows of it."""
        if source.state is not SourceState.ENDED or source.block_ids:
            raise RuleBroken(f"{source.handoff_id}: a prefix is lent to nobody")

    def committed(self, node: "Node", spec: Spec, sink: Sink, end: "End") -> None:
        """A sink has committed: once, and with the right KV."""
        key = (sink.handoff_id, sink.fence)
        if sink.num_commits != 1 or (str(node), *key) in self._committed:
            raise RuleBroken(f"{key} committed twice")
        self._committed.add((str(node), *key))
        piece = whole(sink.num_tokens)
        values = node.allocator.memory.gather(sink.block_ids, piece)
        if meanings(values) != meanings(cells(spec, 0, piece)):
            raise RuleBroken(f"{key} committed with wrong KV")
        # What was shared on either side may be of any attempt; the rest is of this one.
        num_any = min(sink.num_tokens, max(sink.num_cached_tokens, end.num_hit_tokens))
        piece = whole(sink.num_tokens, num_any)
        first = sink.block_ids[num_any // LAYOUT.block_size :]
        if node.allocator.memory.gather(first, piece) != cells(spec, end.salt, piece):
            raise RuleBroken(f"{key} committed with KV of another attempt")

    def holds(self, node: "Node", spec: Spec, block_ids: Sequence[int]) -> None:
        """Full blocks are named or shared as the first of a request: they hold its KV."""
        piece = whole(len(block_ids) * LAYOUT.block_size)
        values = node.allocator.memory.gather(tuple(block_ids), piece)
        if meanings(values) != meanings(cells(spec, 0, piece)):
            raise RuleBroken(f"{node}: blocks {tuple(block_ids)} do not hold the KV of {spec}")

    def accepted(self, handoff_id: HandoffId, fence: Fence, node: str) -> None:
        """The router takes a decode instance as the owner: one per fence."""
        if self._owners.setdefault((handoff_id, fence), node) != node:
            raise RuleBroken(f"{handoff_id} {fence} has two owners")

    def delivered(self, spec: Spec, delivered: list[int], token: int) -> None:
        """The client gets its next token: the right one for this position."""
        position = len(delivered)
        if token != spec.token_at(position) or position >= spec.num_wanted_tokens:
            raise RuleBroken(f"{spec}: token {token} delivered at position {position}")


def check_books(allocator: BlockAllocator) -> None:
    """Law 2, after every event."""
    try:
        allocator.check()
    except IntegrityError as error:
        raise RuleBroken(str(error)) from error


def check_idle(name: str, allocator: BlockAllocator) -> None:
    """Law 2, at the end of time."""
    if problem := leak_report(allocator.counts(), allocator.num_blocks):
        raise RuleBroken(f"{name}: {problem}")


def as_rule(error: BatonError) -> RuleBroken:
    """An error that no part of the world may raise outside its handlers."""
    return RuleBroken(f"{type(error).__name__}: {error}")
