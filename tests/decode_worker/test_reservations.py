"""Room is given in order of announcement, and never the last blocks of running answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.blocks import BlockState
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.request import Fence
from decode_worker.reservations import Reservations
from engine.block_allocator import BlockAllocator
from kv_transfer.sink import Sink
from tests.worker_host.fake_engine import FAKE_SPEC
from worker_host.blocks import InstanceBlocks

LAYOUT = KvLayout.of(FAKE_SPEC, 4)


class Rig:
    """Ten blocks."""

    def __init__(self, num_running: int = 0) -> None:
        self.blocks = InstanceBlocks(BlockAllocator(10, 4))
        self.num_running = num_running
        self.reservations = Reservations(self.blocks, lambda: self.num_running)

    def sink(self, num_blocks: int, name: str = "a") -> Sink:
        """Announced, without room."""
        sink = Sink(
            handoff_id=HandoffId(name), layout=LAYOUT, blocks=self.blocks, fence=Fence(0, 1)
        )
        sink.announce(num_blocks * 4)
        return sink

    @asynccontextmanager
    async def waiting(self, *sinks: Sink) -> AsyncIterator[list["asyncio.Task[None]"]]:
        """Each has asked, in order."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.reservations.reserve(sink)) for sink in sinks]
            await settle()
            yield tasks
            for task in tasks:
                task.cancel()


async def settle() -> None:
    """Let every callback run that is planned by now."""
    for _ in range(5):
        await asyncio.sleep(0)


def granted(*sinks: Sink) -> list[int]:
    """Blocks that each has."""
    return [len(sink.block_ids) for sink in sinks]


async def test_room_at_once() -> None:
    rig = Rig()
    sink = rig.sink(10)
    async with rig.waiting(sink):
        assert granted(sink) == [10]


async def test_the_first_waits_and_so_do_those_behind() -> None:
    rig = Rig()
    held = rig.blocks.allocate(5, BlockState.OWNED)
    large, small = rig.sink(6), rig.sink(1)
    async with rig.waiting(large, small):
        assert granted(large, small) == [0, 0]
        rig.blocks.release(held, BlockState.OWNED)
        await settle()
        assert granted(large, small) == [6, 1]


async def test_one_that_gives_up_lets_the_next_in() -> None:
    rig = Rig()
    rig.blocks.allocate(5, BlockState.OWNED)
    large, small = rig.sink(6), rig.sink(1)
    async with rig.waiting(large, small) as tasks:
        tasks[0].cancel()
        await settle()
        assert granted(large, small) == [0, 1]


async def test_running_growth_comes_first() -> None:
    rig = Rig(num_running=2)
    large, small = rig.sink(9), rig.sink(8)
    async with rig.waiting(large):
        assert granted(large) == [0]
    async with rig.waiting(small):
        assert granted(small) == [8]


async def test_a_sink_that_has_all_its_blocks_needs_no_room() -> None:
    rig = Rig(num_running=5)
    sink = rig.sink(2)
    rig.num_running = 0
    async with rig.waiting(sink):
        sink.retarget(Fence(0, 2))
        sink.announce(8)
    rig.blocks.allocate(8, BlockState.OWNED)
    rig.num_running = 5
    async with rig.waiting(sink):
        assert granted(sink) == [2]
        assert sink.state.value == "receiving"
