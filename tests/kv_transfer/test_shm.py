"""Shared memory between two ends: the fence of its slots, and who may have how many."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.carriers.shm import MAX_SLOTS_PER_STREAM, Share, ShmCarrier, SlotPool
from rpc.pb import kv_transfer_pb2 as pb
from tests.kv_transfer.shm_support import NOTHING, NUM_SLOTS, attached, filled, outlet_of

NUM_STREAMS = 6


@pytest.fixture
def carrier() -> Iterator[ShmCarrier]:
    """Source and sink in one."""
    carrier = ShmCarrier(num_slots=NUM_SLOTS)
    yield carrier
    carrier.close()


# --- the fence ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the stream ended", "the sink's word came too early"])
async def test_a_slot_filled_again_during_a_scatter_is_noticed(
    carrier: ShmCarrier, how: str
) -> None:
    inlet, outlet = await attached(carrier), outlet_of(carrier)
    header = await filled(outlet, 1)
    payload = await inlet.payload(header, NOTHING)
    assert payload is not None
    assert inlet.is_intact(header)
    if how == "the stream ended":
        outlet.close()
        assert inlet.is_intact(header), "nothing is lost until the slot is used"
        outlet = outlet_of(carrier)
    else:
        outlet.emptied(1)
    place = await outlet.place(1)
    assert place.offset == header.offset
    # Already before a byte is written: the gather may be anywhere when the scatter ends.
    assert not inlet.is_intact(header)
    assert await inlet.payload(header, NOTHING) is None
    outlet.close()
    inlet.close()


async def test_a_closed_inlet_has_nothing_intact(carrier: ShmCarrier) -> None:
    inlet, outlet = await attached(carrier), outlet_of(carrier)
    header = await filled(outlet, 1)
    inlet.close()
    assert not inlet.is_intact(header)
    assert await inlet.payload(header, NOTHING) is None
    outlet.close()


async def test_a_sink_cannot_free_what_it_was_not_sent(carrier: ShmCarrier) -> None:
    outlet = outlet_of(carrier)
    filling = await outlet.place(100)
    outlet.emptied(2**32 - 1)
    assert carrier._pool.num_free == 3
    await outlet.sent(pb.SegmentHeader(), filling)
    assert carrier._pool.num_free == 4, "what it said before counts from now on"


async def test_a_place_without_a_frame_is_not_counted_as_sent(carrier: ShmCarrier) -> None:
    outlet = outlet_of(carrier)
    await outlet.place(100)
    header = await filled(outlet, 1)
    outlet.emptied(1)
    assert (await outlet.place(100)).offset == header.offset
    outlet.close()
    assert carrier._pool.num_free == 4


# --- the pool -------------------------------------------------------------------------------


@given(
    num_slots=st.integers(1, 8),
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "give", "cancel"]), st.integers(0, NUM_STREAMS - 1))
    ),
)
def test_no_slot_has_two_holders_and_none_is_lost(
    num_slots: int, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(play(num_slots, steps))


@dataclass
class Streams:
    """Some streams, each with at most one wait for a slot under way."""

    pool: SlotPool
    num_slots: int
    shares: list[Share] = field(default_factory=lambda: [Share() for _ in range(NUM_STREAMS)])
    taking: dict[int, "asyncio.Task[int]"] = field(default_factory=dict)
    held: list[list[int]] = field(default_factory=lambda: [[] for _ in range(NUM_STREAMS)])

    def take(self, index: int) -> None:
        if index not in self.taking:
            wait = self.pool.take(self.shares[index])
            self.taking[index] = asyncio.get_running_loop().create_task(wait)

    def give(self, index: int) -> None:
        if self.held[index]:
            self.pool.give(self.held[index].pop(), self.shares[index])

    def cancel(self, index: int) -> None:
        if index in self.taking:
            self.taking.pop(index).cancel()

    async def settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        for index, task in list(self.taking.items()):
            if task.done():
                self.held[index].append(self.taking.pop(index).result())

    def check(self) -> None:
        out = [slot for slots in self.held for slot in slots]
        assert len(out) == len(set(out)) == self.num_slots - self.pool.num_free
        assert all(len(slots) <= MAX_SLOTS_PER_STREAM for slots in self.held)
        # Who holds nothing never waits while a slot is free.
        assert not self.pool.num_free or all(self.held[index] for index in self.taking)


async def play(num_slots: int, steps: list[tuple[str, int]]) -> None:
    streams = Streams(SlotPool(num_slots), num_slots)
    for kind, index in steps:
        {"take": streams.take, "give": streams.give, "cancel": streams.cancel}[kind](index)
        await streams.settle()
        streams.check()
    for index in range(NUM_STREAMS):
        streams.cancel(index)
        await streams.settle()
        while streams.held[index]:
            streams.give(index)
    assert streams.pool.num_free == num_slots


async def test_a_cancel_that_meets_its_grant_gives_it_back() -> None:
    pool, holder, waiter = SlotPool(1), Share(), Share()
    slot = await pool.take(holder)
    waiting = asyncio.get_running_loop().create_task(pool.take(waiter))
    await asyncio.sleep(0)
    pool.give(slot, holder)
    assert pool.num_free == 0, "granted, though the waiter has not run yet"
    waiting.cancel()
    await asyncio.wait({waiting})
    assert (pool.num_free, waiter.num_held) == (1, 0)


async def test_streams_that_stand_still_leave_slots_for_others() -> None:
    pool, shares = SlotPool(16), [Share() for _ in range(8)]
    async with asyncio.TaskGroup() as group:
        tasks = []
        for share in shares:
            tasks += [group.create_task(pool.take(share)) for _ in range(MAX_SLOTS_PER_STREAM)]
            await asyncio.sleep(0)
        assert shares[0].num_held == MAX_SLOTS_PER_STREAM, "there was plenty"
        assert all(share.num_held for share in shares)
        for task in tasks:
            task.cancel()


async def test_a_stream_alone_has_its_bound_too() -> None:
    pool, share = SlotPool(32), Share()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pool.take(share)) for _ in range(2 * MAX_SLOTS_PER_STREAM)]
        await asyncio.sleep(0)
        assert share.num_held == MAX_SLOTS_PER_STREAM
        for task in tasks:
            task.cancel()
