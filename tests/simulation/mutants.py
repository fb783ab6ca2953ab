"""Machines with one planted bug each: what the simulation must notice."""

from collections.abc import Sequence

from core.handoff import SinkState
from core.kv_layout import KvLayout, KvRange
from core.request import Fence
from engine.block_allocator import Pin
from kv_transfer.sink import Sink, Write
from kv_transfer.source import Outcome, Read, Reader, Segment, Source
from tests.simulation.mutants_reuse import REUSE_MUTANTS
from tests.simulation.watch import WatchedAllocator
from tests.simulation.world import Parts


class ReadsUnpinned(Source):
    """A block can be freed while it is read."""

    def begin_read(self, segment: Segment) -> Read:
        read = super().begin_read(segment)
        self.blocks.unpin(read.pin)
        return read


class WritesUnpinned(Sink):
    """A block can be freed while it is written."""

    def begin_write(self, attempt: Fence, piece: KvRange) -> Write | None:
        write = super().begin_write(attempt, piece)
        if write is not None:
            self.blocks.unpin(write.pin)
        return write


class CommitsAgain(Sink):
    """After a commit it still counts as receiving: a repeated last frame commits again."""

    def commit(self) -> bool:
        if self.num_commits:
            self.num_commits += 1
            return True
        before = self.state
        is_right = super().commit()
        if is_right:
            self.state = before
        return is_right


class RetargetsCommitted(Sink):
    """The Retarget that lost the race against the commit is carried out all the same."""

    def retarget(self, fence: Fence) -> None:
        if self.state is SinkState.COMMITTED:
            self.state, self.block_ids = SinkState.LOST, ()
        super().retarget(fence)


class ReservesUnderWriter(Sink):
    """Credit is granted while a writer of an earlier attempt still touches the blocks."""

    def reserve(self, block_ids: Sequence[int], cached: Sequence[int] = ()) -> int:
        writes, self._writes = self._writes, set()
        credit = super().reserve(block_ids, cached)
        self._writes = writes
        return credit

    @property
    def can_reserve(self) -> bool:
        return self.state in (SinkState.RESERVING, SinkState.RECEIVING)


class KeepsBlocksAtExpiry(Source):
    """A lease that expires is not released."""

    def _end(self, outcome: Outcome) -> None:
        if outcome is Outcome.EXPIRED:
            self.block_ids = ()
        super()._end(outcome)


class KeepsBlocksWhenStopped(Sink):
    """A handoff that is stopped before its commit keeps its reservation."""

    def _give_back(self) -> bool:
        self.hand_over()
        return True


class TakesOldSegments(Sink):
    """A segment of an attempt that was replaced is written."""

    def begin_write(self, attempt: Fence, piece: KvRange) -> Write | None:
        return super().begin_write(self.fence, piece)


class TakesOldEnds(Sink):
    """The last frame of an attempt that was replaced is believed."""

    def end(self, attempt: Fence, digest: int) -> None:
        super().end(self.fence, digest)


class CreditsTooMuch(Sink):
    """Credit for the whole prompt, whatever is reserved."""

    def reserve(self, block_ids: Sequence[int], cached: Sequence[int] = ()) -> int:
        super().reserve(block_ids, cached)
        return self.num_tokens


class SendsWithoutCredit(Reader):
    """Credit leaks: each segment that is sent makes room for another."""

    def next_segment(self, layout: KvLayout, frontier: Sequence[int]) -> Segment | None:
        segment = super().next_segment(layout, frontier)
        if segment is not None:
            self.credit_tokens += 1
        return segment


class SendsWhatWasFreed(Source):
    """Whether a block changed hands during a read is not looked at."""

    def end_read(self, read: Read) -> bool:
        super().end_read(read)
        return True


class ForgetsPins(WatchedAllocator):
    """Nothing is quarantined."""

    def pin(self, block_ids: Sequence[int]) -> Pin:
        return super().pin(())


MUTANTS: dict[str, Parts] = {
    "block freed while read": Parts(source=ReadsUnpinned),
    "block freed while written": Parts(sink=WritesUnpinned),
    "double commit": Parts(sink=CommitsAgain),
    "retarget after commit": Parts(sink=RetargetsCommitted),
    "reserve under an old writer": Parts(sink=ReservesUnderWriter),
    "lost release at expiry": Parts(source=KeepsBlocksAtExpiry),
    "lost release when stopped": Parts(sink=KeepsBlocksWhenStopped),
    "late segment of an old fence": Parts(sink=TakesOldSegments),
    "late end of an old fence": Parts(sink=TakesOldEnds),
    "credit beyond the reservation": Parts(sink=CreditsTooMuch),
    "credit leak": Parts(reader=SendsWithoutCredit),
    "bytes sent after the lease": Parts(source=SendsWhatWasFreed),
    "quarantine forgotten": Parts(allocator=ForgetsPins),
    **REUSE_MUTANTS,
}
