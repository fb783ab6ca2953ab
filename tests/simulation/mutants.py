"""Machines with one planted bug each: what the simulation must notice."""

from collections.abc import Sequence

from core.kv_layout import KvLayout, KvRange
from core.request import Fence
from kv_transfer.sink import Sink, Write
from kv_transfer.source import Outcome, Read, Reader, Segment, Source
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
        before, held = self.state, self.block_ids
        is_right = super().commit()
        if is_right:
            self.state = before
            self.block_ids = held
        return is_right


class CommitsAfterRetarget(Sink):
    """The commit that lost the race against a Retarget is carried out all the same."""

    def retarget(self, fence: Fence) -> None:
        digest, expected, covered = self._digest, self.expected_digest, list(self._covered)
        before = self.state
        super().retarget(fence)
        if expected is not None:
            self.state, self._digest, self.expected_digest = before, digest, expected
            self._covered = covered


class KeepsBlocksAtExpiry(Source):
    """A lease that expires is not released."""

    def end(self, outcome: Outcome) -> None:
        if outcome is Outcome.EXPIRED:
            self.block_ids = ()
        super().end(outcome)


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

    def reserve(self, block_ids: Sequence[int]) -> int:
        super().reserve(block_ids)
        return self.num_tokens


class SendsWithoutCredit(Reader):
    """Credit leaks: each segment that is sent makes room for another."""

    def next_segment(self, layout: KvLayout, frontier: Sequence[int]) -> Segment | None:
        segment = super().next_segment(layout, frontier)
        if segment is not None:
            self.credit_tokens += 1
        return segment


class ForgetsStaleReleases(Source):
    """A release of an attempt that was replaced ends the lease of its successor."""

    def release(self, fence: Fence, *, committed: bool) -> None:
        super().release(max(fence, self.fence), committed=committed)


MUTANTS: dict[str, Parts] = {
    "block freed while read": Parts(source=ReadsUnpinned),
    "block freed while written": Parts(sink=WritesUnpinned),
    "double commit": Parts(sink=CommitsAgain),
    "commit after retarget": Parts(sink=CommitsAfterRetarget),
    "lost release at expiry": Parts(source=KeepsBlocksAtExpiry),
    "lost release when stopped": Parts(sink=KeepsBlocksWhenStopped),
    "late segment of an old fence": Parts(sink=TakesOldSegments),
    "late end of an old fence": Parts(sink=TakesOldEnds),
    "credit beyond the reservation": Parts(sink=CreditsTooMuch),
    "credit leak": Parts(reader=SendsWithoutCredit),
}
