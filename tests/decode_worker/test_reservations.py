"""Room is given by turn, and never the last blocks of running answers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from core.blocks import BlockState
from core.clock import ManualClock
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.prefix import KEY_BYTES, BlockHash
from core.request import Fence
from decode_worker.reservations import Reservations
from kv_transfer.sink import Sink
from policy.fairness import Claim, FairQueue, ServedTokens
from tests.worker_host.fake_engine import FAKE_SPEC
from worker_host.blocks import InstanceBlocks

LAYOUT = KvLayout.of(FAKE_SPEC, 4)


@dataclass
class Running:
    """Who comes first."""

    num_growing: int = 0
    has_swapped: bool = False
    is_short: bool = False


class Rig:
    """Ten blocks."""

    def __init__(self, num_running: int = 0) -> None:
        self.blocks = InstanceBlocks.cached(10, 4, bytes(KEY_BYTES))
        self.running = Running(num_running)
        self.served = ServedTokens()
        self.work = asyncio.Event()
        self.kept: list[Sink] = []
        self.reservations = Reservations(
            self.blocks,
            FairQueue(ageing_s=10.0, served=self.served),
            self.running,
            sinks=lambda: self.kept,
            clock=ManualClock(),
            work=self.work,
        )

    def sink(self, num_blocks: int, name: str = "a") -> Sink:
        """Announced, without room."""
        sink = Sink(
            handoff_id=HandoffId(name), layout=LAYOUT, blocks=self.blocks, fence=Fence(0, 1)
        )
        sink.announce(num_blocks * 4)
        return sink

    def cache(self, num_tokens: int) -> list[BlockHash]:
        """Names of a prompt's blocks, which are cached."""
        chain = self.blocks.names("", range(num_tokens))
        block_ids = self.blocks.allocate(len(chain), BlockState.OWNED)
        self.blocks.name(chain, block_ids)
        self.blocks.release(block_ids, BlockState.OWNED)
        return chain

    @asynccontextmanager
    async def waiting(
        self,
        *sinks: Sink,
        claims: list[Claim] | None = None,
        chain: Sequence[BlockHash] = (),
    ) -> AsyncIterator[list["asyncio.Task[None]"]]:
        """Each has asked, in order."""
        claims = claims or [Claim(tenant="", priority=0, arrived_at_s=0.0) for _ in sinks]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.reservations.reserve(sink, claim, chain))
                for sink, claim in zip(sinks, claims, strict=True)
            ]
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
    rig.running.num_growing = 0
    async with rig.waiting(sink):
        sink.retarget(Fence(0, 2))
        sink.announce(8)
    rig.blocks.allocate(8, BlockState.OWNED)
    rig.running.num_growing = 5
    async with rig.waiting(sink):
        assert granted(sink) == [2]
        assert sink.state.value == "receiving"


CLAIMS = [
    # id, claims of two that wait, who gets the room
    ("arrival", [("a", 0, 2.0), ("a", 0, 2.0)], [6, 0]),
    ("priority", [("a", 0, 1.0), ("a", 1, 2.0)], [0, 6]),
    ("least served", [("greedy", 0, 1.0), ("modest", 0, 2.0)], [0, 6]),
]


@pytest.mark.parametrize(("claims", "want"), [c[1:] for c in CLAIMS], ids=[c[0] for c in CLAIMS])
async def test_whose_turn_it_is(claims: list[tuple[str, int, float]], want: list[int]) -> None:
    rig = Rig()
    rig.served.join("greedy")
    rig.served.charge("greedy", 1.0)
    held = rig.blocks.allocate(10, BlockState.OWNED)
    sinks = [rig.sink(6), rig.sink(6)]
    made = [Claim(tenant=t, priority=p, arrived_at_s=at_s) for t, p, at_s in claims]
    async with rig.waiting(*sinks, claims=made):
        rig.blocks.release(held, BlockState.OWNED)
        await settle()
        assert granted(*sinks) == want


async def test_nothing_is_granted_while_answers_wait_to_go_on() -> None:
    rig = Rig()
    rig.running.has_swapped = rig.running.is_short = True
    held = rig.blocks.allocate(5, BlockState.OWNED)
    sink = rig.sink(6)
    async with rig.waiting(sink):
        rig.blocks.release(held, BlockState.OWNED)
        await settle()
        assert granted(sink) == [0], "whoever schedules has not asked yet"
        assert rig.work.is_set(), "it was told to"
        rig.reservations.grant()
        assert granted(sink) == [0]
        rig.running.is_short = False
        rig.reservations.grant()
        assert granted(sink) == [6], "nobody runs whose end would make room for them"


# --- what a retargeted handoff has already ----------------------------------------------------


def retargeted(rig: Rig, num_blocks: int, name: str = "kept") -> Sink:
    """Not announced again; it has its room from before, as long as nobody needs it."""
    sink = rig.sink(num_blocks, name)
    sink.reserve(rig.blocks.allocate(num_blocks, BlockState.INCOMING))
    sink.retarget(Fence(0, 2))
    rig.kept.append(sink)
    return sink


async def test_it_keeps_its_room_while_nobody_waits() -> None:
    rig = Rig()
    kept, other = retargeted(rig, 6), rig.sink(4)
    async with rig.waiting(other):
        assert granted(kept, other) == [6, 4]


async def test_it_yields_its_room_to_who_waits() -> None:
    """Its new prefill may wait for the blocks that are leased to just that one."""
    rig = Rig()
    kept, other = retargeted(rig, 6), rig.sink(5)
    async with rig.waiting(other):
        assert granted(kept, other) == [0, 5]
        kept.announce(6 * 4)
        async with rig.waiting(kept):
            assert granted(kept) == [0]
            other.stop()
            await settle()
            assert granted(kept, other) == [6, 0]


async def test_it_yields_its_room_to_answers_that_wait() -> None:
    rig = Rig()
    kept = retargeted(rig, 6)
    rig.running.has_swapped = rig.running.is_short = True
    rig.reservations.grant()
    assert granted(kept) == [0]
    rig.blocks.allocator.check()


@pytest.mark.parametrize("state", ["lost", "receiving"])
async def test_only_what_no_prefill_fills_is_taken_back(state: str) -> None:
    rig = Rig()
    kept = retargeted(rig, 6)
    kept.announce(6 * 4)
    kept.reserve(())
    if state == "lost":
        kept.lose(Fence(0, 2), 0.0)
    async with rig.waiting(rig.sink(5)) as (waiting,):
        assert granted(kept) == [6 if state == "receiving" else 0]
        assert waiting.done() is (state == "lost")
    kept.stop()
    rig.blocks.allocator.check()


@pytest.mark.parametrize(("num_held", "num_left"), [(0, 3), (1, 0)])
async def test_who_needs_more_than_it_kept_waits_without(num_held: int, num_left: int) -> None:
    """At once where there is room, else in its turn and holding nothing."""
    rig = Rig()
    kept = retargeted(rig, 2)
    held = rig.blocks.allocate(7 + num_held, BlockState.OWNED)
    kept.announce(3 * 4)
    async with rig.waiting(kept):
        assert granted(kept) == [num_left]
        rig.blocks.release(held[:1], BlockState.OWNED)
        await settle()
        assert granted(kept) == [3]


# --- what is cached of a prompt ---------------------------------------------------------------


async def test_what_is_cached_is_shared_and_the_rest_allocated() -> None:
    rig = Rig()
    chain = rig.cache(12)
    sink = rig.sink(5)
    async with rig.waiting(sink, chain=chain):
        assert granted(sink) == [5]
        assert (sink.num_cached_blocks, sink.num_cached_tokens) == (3, 12)
        assert list(sink.block_ids[:3]) == rig.blocks.cache.find(chain)
        counts = rig.blocks.allocator.counts()
        assert (counts[BlockState.OWNED], counts[BlockState.INCOMING]) == (3, 2)
    assert sink.stop()
    rig.blocks.allocator.check()
    counts = rig.blocks.allocator.counts()
    assert (counts[BlockState.CACHED], counts[BlockState.FREE]) == (3, 7)


async def test_whoever_waits_holds_no_part() -> None:
    rig = Rig()
    chain = rig.cache(12)
    held = rig.blocks.allocate(6, BlockState.OWNED)
    first, second = rig.sink(5), rig.sink(4, "b")
    async with rig.waiting(first, second, chain=chain):
        assert granted(first, second) == [0, 0], "three are cached, and one is free"
        assert not rig.blocks.allocator.num_holders(rig.blocks.cache.find(chain)[0])
        rig.blocks.release(held[:1], BlockState.OWNED)
        await settle()
        assert granted(first, second) == [5, 0]
        rig.blocks.release(held[1:2], BlockState.OWNED)
        await settle()
        assert granted(first, second) == [5, 4], "three of them are the other's too"
    for sink in (first, second):
        assert sink.stop()
    rig.blocks.allocator.check()


async def test_cached_blocks_count_as_free_before_growth() -> None:
    rig = Rig(num_running=2)
    chain = rig.cache(40)
    whole, most = rig.sink(10), rig.sink(8)
    async with rig.waiting(whole, chain=chain):
        assert granted(whole) == [0], "no block would be left for those who run"
    async with rig.waiting(most, chain=chain):
        assert (granted(most), most.num_cached_blocks) == ([8], 8)


async def test_a_block_that_the_prompt_does_not_fill_is_not_shared() -> None:
    rig = Rig()
    chain = rig.cache(12)
    sink = _announced(rig, 11)
    async with rig.waiting(sink, chain=chain):
        assert (granted(sink), sink.num_cached_tokens) == ([3], 8)
    with pytest.raises(ValueError, match="does not fill"):
        _announced(rig, 3).reserve((), rig.blocks.share(chain[:1]))


async def test_a_retargeted_sink_keeps_what_it_shares() -> None:
    rig = Rig()
    chain = rig.cache(8)
    sink = rig.sink(3)
    async with rig.waiting(sink, chain=chain):
        before = sink.block_ids
        sink.retarget(Fence(0, 2))
        sink.announce(16)
    async with rig.waiting(sink, chain=rig.cache(16)):
        assert sink.block_ids[:3] == before
        assert (granted(sink), sink.num_cached_tokens) == ([4], 8)


def _announced(rig: Rig, num_tokens: int) -> Sink:
    sink = Sink(handoff_id=HandoffId("b"), layout=LAYOUT, blocks=rig.blocks, fence=Fence(0, 1))
    sink.announce(num_tokens)
    return sink
