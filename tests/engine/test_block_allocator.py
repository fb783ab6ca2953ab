"""Law 2 at its root: every block is in exactly one state, whatever the order of calls."""

import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.blocks import BlockState, leak_report
from core.errors import IllegalTransition, Saturated
from core.prefix import BlockHash
from engine.block_allocator import (
    ALLOCATABLE,
    HELD,
    MOVES,
    BlockAllocator,
    IntegrityError,
    OutOfBlocks,
    Pin,
)
from engine.prefix_cache import PrefixCache

OWNED, INCOMING, LEASED = BlockState.OWNED, BlockState.INCOMING, BlockState.LEASED
FREE, QUARANTINED, CACHED = BlockState.FREE, BlockState.QUARANTINED, BlockState.CACHED


def test_too_many_names_how_many_and_takes_none() -> None:
    allocator = BlockAllocator(8, 16)
    allocator.allocate(3, OWNED)
    with pytest.raises(OutOfBlocks, match="6 KV blocks asked for, 5 free of 8") as caught:
        allocator.allocate(6, OWNED)
    assert isinstance(caught.value, Saturated)
    assert allocator.num_free == 5


@pytest.mark.parametrize(
    ("num_tokens", "want"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10), (161, 11)]
)
def test_blocks_for(num_tokens: int, want: int) -> None:
    assert BlockAllocator(1, 16).blocks_for(num_tokens) == want


def test_blocks_come_in_runs_again_after_release() -> None:
    allocator = BlockAllocator(8, 16)
    first = allocator.allocate(4, OWNED)
    allocator.allocate(2, OWNED)
    assert first == (0, 1, 2, 3)
    allocator.release(first, OWNED)
    assert allocator.allocate(4, INCOMING) == first


def test_every_state_is_counted() -> None:
    counts = BlockAllocator(8, 16).counts()
    assert set(counts) == set(BlockState)
    assert leak_report(counts, 8) is None


def test_a_pinned_block_waits_in_quarantine_for_its_last_pin() -> None:
    allocator = BlockAllocator(2, 16)
    block_ids = allocator.allocate(2, OWNED)
    reader, writer = allocator.pin(block_ids), allocator.pin(block_ids[:1])
    allocator.release(block_ids, OWNED)
    assert allocator.counts()[QUARANTINED] == 2
    allocator.unpin(reader)
    allocator.unpin(reader)
    assert allocator.counts()[QUARANTINED] == 1
    allocator.unpin(writer)
    assert allocator.num_free == 2


def test_unpin_of_a_used_block_frees_nothing() -> None:
    allocator = BlockAllocator(2, 16)
    pin = allocator.pin(allocator.allocate(2, OWNED))
    allocator.unpin(pin)
    assert allocator.counts()[OWNED] == 2


def test_generations_tell_a_reader_that_its_block_was_revoked() -> None:
    allocator = BlockAllocator(2, 16)
    block_ids = allocator.allocate(2, OWNED)
    before = allocator.generations(block_ids)
    allocator.move(block_ids, OWNED, LEASED)
    assert allocator.generations(block_ids) == before
    allocator.pin(block_ids[:1])
    allocator.release(block_ids, LEASED)
    assert all(new > old for new, old in zip(allocator.generations(block_ids), before, strict=True))


def release_twice(allocator: BlockAllocator, block_ids: tuple[int, ...]) -> None:
    allocator.release(block_ids, OWNED)
    allocator.release(block_ids, OWNED)


def pin_in_quarantine(allocator: BlockAllocator, block_ids: tuple[int, ...]) -> None:
    allocator.pin(block_ids)
    allocator.release(block_ids, OWNED)
    allocator.pin(block_ids)


Misuse = Callable[[BlockAllocator, tuple[int, ...]], object]
MISUSES: list[tuple[str, Misuse, str]] = [
    ("allocate as leased", lambda a, _: a.allocate(1, LEASED), "not allocated as leased"),
    ("move out of free", lambda a, ids: a.move(ids, FREE, OWNED), "does not move from free"),
    (
        "move from elsewhere",
        lambda a, ids: a.move(ids, INCOMING, OWNED),
        "0 is owned, not incoming",
    ),
    ("release what another holds", lambda a, ids: a.release(ids, LEASED), "0 is owned, not leased"),
    ("hold as free", lambda a, ids: a.release(ids, FREE), "nobody holds blocks as free"),
    ("share a free block", lambda a, _: a.share((3,)), "cannot share: block 3 is free"),
    ("release twice", release_twice, "block 0 is free"),
    ("named twice", lambda a, ids: a.release(ids + ids, OWNED), "named twice"),
    ("unknown block", lambda a, ids: a.release((*ids, 99), OWNED), "no block 99, there are 4"),
    ("negative block", lambda a, _: a.release((-1,), OWNED), "no block -1"),
    ("pin a free block", lambda a, _: a.pin((3,)), "cannot pin: block 3 is free"),
    ("pin a quarantined block", pin_in_quarantine, "block 0 is quarantined"),
]


@pytest.mark.parametrize(
    ("misuse", "message"), [m[1:] for m in MISUSES], ids=[m[0] for m in MISUSES]
)
def test_misuse_is_refused_whole(misuse: Misuse, message: str) -> None:
    allocator = BlockAllocator(4, 16)
    block_ids = allocator.allocate(2, OWNED)
    with pytest.raises(IllegalTransition, match=message):
        misuse(allocator, block_ids)
    allocator.check()


def plant_count(allocator: BlockAllocator) -> None:
    allocator._counts[OWNED] += 1


def plant_double_free(allocator: BlockAllocator) -> None:
    allocator._free.append(allocator._free[0])


def plant_owned_in_free_list(allocator: BlockAllocator) -> None:
    allocator._free.append(0)


def plant_pin_count(allocator: BlockAllocator) -> None:
    allocator._num_pins[0] += 1


def plant_free_while_pinned(allocator: BlockAllocator) -> None:
    allocator.pin((0,))
    allocator._num_holders[OWNED][0] = 0
    allocator._give_back(0)


def plant_forgotten_quarantine(allocator: BlockAllocator) -> None:
    allocator._num_holders[OWNED][0] = 0
    allocator._set(0, QUARANTINED)


def plant_lost_holder(allocator: BlockAllocator) -> None:
    allocator._num_holders[OWNED][0] = 0


def plant_shared_incoming(allocator: BlockAllocator) -> None:
    allocator._num_holders[INCOMING][0] = 1


def plant_swapped(allocator: BlockAllocator) -> None:
    allocator.count_swapped(-1)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_count, "2 blocks counted as owned, 1 are"),
        (plant_double_free, "free list"),
        (plant_owned_in_free_list, "free list"),
        (plant_pin_count, "block 0: 1 pins counted, 0 live"),
        (plant_free_while_pinned, "block 0 is free while pinned"),
        (plant_forgotten_quarantine, "block 0 is quarantined without a pin"),
        (plant_lost_holder, "block 0 is owned, its holders say None"),
        (plant_shared_incoming, "block 0 is incoming and has other holders"),
        (plant_swapped, "-1 blocks counted as swapped, 0 are"),
    ],
)
def test_check_finds(plant: Callable[[BlockAllocator], None], message: str) -> None:
    allocator = BlockAllocator(4, 16)
    allocator.allocate(1, OWNED)
    allocator.check()
    plant(allocator)
    with pytest.raises(IntegrityError, match=message):
        allocator.check()


def test_cost_does_not_grow_with_the_pool() -> None:
    allocator = BlockAllocator(1_000_000, 16)
    started_at_s = time.perf_counter()
    for _ in range(1000):
        allocator.release(allocator.allocate(4, OWNED), OWNED)
    # 0.02 s measured; a scan of the pool per call would take a minute.
    assert time.perf_counter() - started_at_s < 2.0


class Allocations(RuleBasedStateMachine):
    """The allocator with a prefix cache, beside a model that says who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache()
        self.allocator = BlockAllocator(12, 4, self.cache)
        self.held: list[tuple[tuple[int, ...], BlockState]] = []
        self.pins: list[Pin] = []
        self.content: dict[int, BlockHash] = {}
        """What was named, until it may be overwritten."""
        self.num_names = 0

    def holders(self, block_id: int) -> list[BlockState]:
        return [state for ids, state in self.held if block_id in ids]

    def pinned(self) -> set[int]:
        return {b for p in self.pins for b in p.block_ids}

    @rule(num_blocks=st.integers(0, 6), state=st.sampled_from(sorted(ALLOCATABLE)))
    def allocate(self, num_blocks: int, state: BlockState) -> None:
        num_free = self.allocator.num_free
        try:
            block_ids = self.allocator.allocate(num_blocks, state)
        except OutOfBlocks:
            assert num_free < num_blocks
            return
        assert len(set(block_ids)) == num_blocks
        taken = {b for ids, _ in self.held for b in ids} | self.pinned()
        assert not taken & set(block_ids), "handed out while held or pinned"
        for block_id in block_ids:
            self.content.pop(block_id, None)
        if block_ids:
            self.held.append((block_ids, state))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), new_state=st.sampled_from(sorted(BlockState)))
    def move(self, data: st.DataObject, new_state: BlockState) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        block_ids, source = self.held[at]
        try:
            self.allocator.move(block_ids, source, new_state)
        except IllegalTransition:
            assert (source, new_state) not in MOVES
        else:
            self.held[at] = block_ids, new_state

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        """A holder has computed its blocks."""
        block_ids, state = data.draw(st.sampled_from(self.held))
        if state is INCOMING:
            return
        for block_id in block_ids:
            name = BlockHash(self.num_names.to_bytes(16, "big"))
            self.num_names += 1
            self.cache.insert([name], [block_id])
            self.content.setdefault(block_id, name)

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        """What is named is found with its content, or not at all."""
        block_id = data.draw(st.sampled_from(sorted(self.content)))
        assert self.cache.find([self.content[block_id]]) == [block_id]
        if self.allocator.is_shareable(block_id):
            self.allocator.share([block_id])
            self.held.append(((block_id,), OWNED))
        else:
            assert not self.holders(block_id)
            assert block_id in self.pinned()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block_ids, state = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        before = self.allocator.generations(block_ids)
        self.allocator.release(block_ids, state)
        gone = [not self.holders(block_id) for block_id in block_ids]
        changed = zip(before, self.allocator.generations(block_ids), gone, strict=True)
        assert all(new == old + was_last for old, new, was_last in changed)
        for block_id, was_last in zip(block_ids, gone, strict=True):
            if was_last and not self.cache.keeps(block_id):
                self.content.pop(block_id, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        block_ids, _ = data.draw(st.sampled_from(self.held))
        num_pinned = data.draw(st.integers(0, len(block_ids)))
        self.pins.append(self.allocator.pin(block_ids[:num_pinned]))

    @precondition(lambda self: self.pins)
    @rule(data=st.data(), twice=st.booleans())
    def unpin(self, data: st.DataObject, twice: bool) -> None:
        pin = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        for _ in range(1 + twice):
            self.allocator.unpin(pin)

    @invariant()
    def books_agree(self) -> None:
        self.allocator.check()
        counts = self.allocator.counts()
        assert sum(counts.values()) == self.allocator.num_blocks
        held = {b for ids, _ in self.held for b in ids}
        for state in (OWNED, INCOMING, LEASED):
            first = [next(s for s in HELD if s in self.holders(b)) for b in held]
            assert counts[state] == first.count(state)
        assert counts[QUARANTINED] == len(self.pinned() - held)
        assert counts[CACHED] == len(set(self.content) - held - self.pinned())
        assert len(self.cache) == len(self.content)

    def teardown(self) -> None:
        for block_ids, state in self.held:
            self.allocator.release(block_ids, state)
        for pin in self.pins:
            self.allocator.unpin(pin)
        assert leak_report(self.allocator.counts(), 12) is None


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
