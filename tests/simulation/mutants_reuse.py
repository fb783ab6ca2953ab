"""As mutants.py: bugs in sharing cached blocks, lending them, leave to fetch, and shared memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from core.blocks import BlockState
from core.handoff import SinkEvent, SinkState
from core.ids import HandoffId
from core.prefix import BlockHash
from core.request import Fence
from decode_worker.reservations import Reservations, Waiter
from kv_transfer.shelf import Shelf
from kv_transfer.sink import Sink, Write
from kv_transfer.source import Reader, Source
from policy.fairness import Claim
from tests.simulation.fetching import Fetching
from tests.simulation.leaves import Gate, Leave
from tests.simulation.slots import InSlot, Payload, Slot, Slots
from tests.simulation.streams import Stream
from tests.simulation.watch import WatchedAllocator
from tests.simulation.world import Parts


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
        self._waiting.remove(waiter)
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


REUSE_MUTANTS: dict[str, Parts] = {
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
