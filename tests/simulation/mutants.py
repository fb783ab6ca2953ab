"""Machines with one planted bug each: what the simulation must notice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from core.blocks import BlockState
from core.handoff import SinkEvent, SinkState
from core.ids import HandoffId
from core.kv_layout import KvLayout, KvRange
from core.prefix import BlockHash
from core.request import Fence
from decode_worker.reservations import Reservations, Waiter
from engine.block_allocator import Pin
from kv_transfer.shelf import Shelf
from kv_transfer.sink import Sink, Write
from kv_transfer.source import Outcome, Read, Reader, Segment, Source
from policy.fairness import Claim
from tests.simulation.fetching import Fetching
from tests.simulation.leaves import Gate, Leave
from tests.simulation.slots import InSlot, Payload, Slot, Slots
from tests.simulation.streams import Stream
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


class ReleasesSharedAsIncoming(Sink):
    """All blocks of a reservation are given back as if they had been allocated for it."""

    def _release_reserved(self) -> None:
        self.num_cached_blocks = 0
        super()._release_reserved()


class KeepsShared(Sink):
    """Only what was allocated is given back."""

    def _release_reserved(self) -> None:
        num_cached, self.num_cached_blocks = self.num_cached_blocks, 0
        self.blocks.release(self.hand_over()[num_cached:], BlockState.INCOMING)


class KeepsBlocksAtWaitsEnd(Sink):
    """A lost handoff that nobody retargets keeps its reservation."""

    def expire(self, now_s: float, retarget_wait_s: float) -> bool:
        is_due = self.state is SinkState.LOST and now_s >= self.lost_at_s + retarget_wait_s
        return is_due and self._advance(SinkEvent.EXPIRE)


class CoversNothingShared(Sink):
    """It waits for tokens that nobody will send."""

    def _cover_cached(self) -> None:
        num_cached, self.num_cached_blocks = self.num_cached_blocks, 0
        super()._cover_cached()
        self.num_cached_blocks = num_cached


class CoversAfterRetarget(Sink):
    """What an earlier attempt has brought counts as if it were cached."""

    def _cover_cached(self) -> None:
        before = self._covered
        super()._cover_cached()
        for layer, bits in enumerate(before):
            self._covered[layer] |= bits


class WritesShared(Sink):
    """A segment of tokens that are cached is written, into blocks that others read."""

    def _cover_cached(self) -> None:
        super()._cover_cached()
        self._claimed = [0] * self.layout.num_layers


class SendsCached(Reader):
    """What the reader has already is sent all the same."""

    def credit(self, num_tokens: int, num_cached_tokens: int) -> None:
        super().credit(num_tokens, 0)


class KeepsNames(WatchedAllocator):
    """A block that is evicted is still found by its name."""

    def _evict(self, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block_id = next(iter(self._cached))
            del self._cached[block_id]
            self._set(block_id, BlockState.FREE)
            self._free.append(block_id)


class IgnoresFloor(Reservations):
    """Handoffs take the blocks that running answers need next."""

    @property
    def _floor(self) -> int:
        return 0


class SharesAtOpening(Reservations):
    """Who waits for room holds what is cached already: all may wait for each other."""

    async def reserve(self, sink: Sink, claim: Claim, chain: Sequence[BlockHash] = ()) -> None:
        early = self._blocks.share(() if sink.block_ids else chain)
        try:
            await super().reserve(sink, claim, chain)
        finally:
            self._blocks.release(early, BlockState.OWNED)


class AllocatesFirst(Reservations):
    """The allocation may evict what was found."""

    def _give(self, waiter: Waiter) -> bool:
        sink, share = waiter.sink, self._blocks.share
        if sink.block_ids or not sink.can_reserve:
            return super()._give(waiter)
        hits = self._blocks.hits(waiter.chain)
        num_fresh = sink.num_missing_blocks - hits.num_blocks
        if num_fresh + self._floor > hits.num_free_after:
            return False
        self._remove(waiter)
        fresh = self._blocks.allocate(num_fresh, BlockState.INCOMING)
        sink.reserve(fresh, share(waiter.chain))
        waiter.granted.set()
        return True


class GivesLoansBackEarly(Shelf):
    """A prefix is not held while it is read."""

    @contextmanager
    def lend(self, *args: Any, **kwargs: Any) -> Iterator[Source]:
        with super().lend(*args, **kwargs) as source:
            self._blocks.release(source.block_ids, BlockState.LEASED)
            try:
                yield source
            finally:
                source.block_ids = ()


class ForgetsLoans(Shelf):
    """A prefix stays lent when its reader has gone."""

    @contextmanager
    def lend(
        self,
        handoff_id: HandoffId,
        fence: Fence,
        *,
        token_ids: Sequence[int],
        tenant: str,
        max_tokens: int,
    ) -> Iterator[Source]:
        yield self._put(handoff_id, fence, self._chain(token_ids, tenant, max_tokens))


class AdmitsAnyHandoff(Gate):
    """Leave to read one handoff opens all."""

    def admits(self, shown: Leave, wanted: Leave) -> bool:
        return super().admits(replace(shown, handoff_id=wanted.handoff_id), wanted)


class AdmitsAnyFetcher(Gate):
    """Leave is good for whoever shows it."""

    def admits(self, shown: Leave, wanted: Leave) -> bool:
        return super().admits(replace(shown, fetcher=wanted.fetcher), wanted)


class AdmitsOldFences(Gate):
    """Leave for one attempt is good for all."""

    def admits(self, shown: Leave, wanted: Leave) -> bool:
        return super().admits(replace(shown, fence=wanted.fence), wanted)


class NeverLooksAgain(InSlot):
    """Whether a payload was overwritten while it was copied is not asked."""

    def is_intact(self) -> bool:
        return True


class SaysEmptiedEarly(Fetching):
    """The source may fill a payload's memory again before it was copied."""

    def begin_copy(self, stream: Stream, write: Write, payload: Payload, checksum: int) -> None:
        self.say_emptied(stream, payload)
        super().begin_copy(stream, write, payload, checksum)


class FreesWhatIsFilled(Slots):
    """When a stream closes, its slots are free though a gather may still write to one."""

    def closed(self, stream_id: int) -> None:
        super().closed(stream_id)
        for slot in self._slots:
            if slot.stream_id == stream_id:
                slot.stream_id = None


class CountsNoFillings(Slots):
    """Nobody can tell one filling of a slot from the next."""

    def place(self, stream_id: int) -> Slot | None:
        slot = super().place(stream_id)
        if slot is not None:
            slot.generation = 1
        return slot


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
    "shared blocks released as incoming": Parts(sink=ReleasesSharedAsIncoming),
    "shared blocks not released": Parts(sink=KeepsShared),
    "lost release when no retarget comes": Parts(sink=KeepsBlocksAtWaitsEnd),
    "cached tokens waited for": Parts(sink=CoversNothingShared),
    "coverage of an earlier attempt": Parts(sink=CoversAfterRetarget),
    "shared block written": Parts(sink=WritesShared),
    "cached tokens sent": Parts(reader=SendsCached),
    "evicted and still named": Parts(allocator=KeepsNames),
    "floor ignored": Parts(reservations=IgnoresFloor),
    "shared at opening, not at the turn": Parts(reservations=SharesAtOpening),
    "allocated before shared": Parts(reservations=AllocatesFirst),
    "prefix freed while read": Parts(shelf=GivesLoansBackEarly),
    "loan outlives its reader": Parts(shelf=ForgetsLoans),
    "leave for another handoff": Parts(gate=AdmitsAnyHandoff),
    "leave of another fetcher": Parts(gate=AdmitsAnyFetcher),
    "leave for another attempt": Parts(gate=AdmitsOldFences),
    "fence not looked at after the copy": Parts(in_slot=NeverLooksAgain),
    "emptied before the copy": Parts(fetching=SaysEmptiedEarly),
    "slot freed while it is filled": Parts(slots=FreesWhatIsFilled),
    "fillings not counted": Parts(slots=CountsNoFillings),
}
