"""Who reads what, how long an unread request lives, and when a frame is due."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from core.clock import ManualClock
from core.config import WorkerConfig
from core.errors import Saturated
from core.ids import HandoffId, RouterId
from core.load import Load
from core.prefix import HASH_BYTES, BlockHash
from core.request import Fence
from decode_worker.outbox import NOTHING, Ack
from decode_worker.routers import MAX_ROUTERS, MIN_LOAD_GAP_S, Frame, Routers, is_material
from engine.prefix_cache import KvNews, PrefixCache

ROUTER_ID = RouterId("router-0")
IDS = [HandoffId(f"request-{n}/0") for n in range(3)]
WAIT_S = 10.0


@dataclass
class Rig:
    """Routers over a clock that stands still, and who was abandoned."""

    grace_s: float = 0.01
    clock: ManualClock = field(default_factory=ManualClock)
    load: Load = field(default_factory=lambda: Load(num_blocks=64, num_free_blocks=64))
    cache: PrefixCache = field(default_factory=PrefixCache)
    abandoned: list[HandoffId] = field(default_factory=list)
    was_abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.routers = Routers(
            config=WorkerConfig(router_grace_s=self.grace_s, beat_s=1.0, max_unacked_tokens=4),
            clock=self.clock,
            load=lambda: self.load,
            cache=self.cache,
            abandon=self._abandon,
        )

    def _abandon(self, handoff_ids: Iterable[HandoffId]) -> None:
        self.abandoned += sorted(handoff_ids)
        self.was_abandoned.set()

    async def until_abandoned(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.was_abandoned.wait()

    def open(self, *handoff_ids: HandoffId) -> None:
        for handoff_id in handoff_ids:
            self.routers.outbox_of(ROUTER_ID).open(handoff_id, Fence(0, 1), 0)


def name_of(number: int) -> BlockHash:
    """Told as this number."""
    return BlockHash(number.to_bytes(HASH_BYTES, "little"))


def ack(handoff_id: HandoffId) -> Ack:
    """Nothing read so far, but known."""
    return Ack(handoff_id=handoff_id, next_position=0)


async def test_requests_of_a_router_that_never_subscribes_end_after_the_grace() -> None:
    rig = Rig()
    rig.open(*IDS)
    await rig.until_abandoned()
    assert rig.abandoned == IDS


async def test_requests_that_a_subscription_does_not_name_end_after_the_grace() -> None:
    rig = Rig()
    rig.open(*IDS)
    rig.routers.subscribe(ROUTER_ID, [ack(IDS[0])])
    rig.routers.ack(ROUTER_ID, [ack(IDS[1])])
    await rig.until_abandoned()
    assert rig.abandoned == IDS[2:]
    assert set(rig.routers.outbox_of(ROUTER_ID).handoff_ids) == set(IDS[:2])


async def test_a_subscription_in_time_ends_the_grace() -> None:
    rig = Rig(grace_s=3600.0)
    first = rig.routers.subscribe(ROUTER_ID, [])
    rig.open(*IDS)
    rig.routers.unsubscribe(ROUTER_ID, first)
    second = rig.routers.subscribe(ROUTER_ID, map(ack, IDS))
    rig.routers.unsubscribe(ROUTER_ID, first)
    assert second.is_current
    assert await first.next_frame() is None
    rig.routers.close()
    assert not rig.abandoned


async def test_a_frame_is_due_at_once_for_tokens_later_for_load_and_at_the_beat() -> None:
    rig = Rig(grace_s=3600.0)
    reader = rig.routers.subscribe(ROUTER_ID, [])
    assert await reader.next_frame() == Frame(outputs=[], load=rig.load)

    async def is_due() -> bool:
        try:
            async with asyncio.timeout(0.0):
                return await reader.next_frame() is not None
        except TimeoutError:
            return False

    assert not await is_due()
    rig.load = replace(rig.load, num_decoding=1)
    rig.clock.advance(MIN_LOAD_GAP_S / 2)
    assert not await is_due()
    rig.clock.advance(MIN_LOAD_GAP_S / 2)
    assert await is_due()
    outbox = rig.routers.outbox_of(ROUTER_ID)
    outbox.put(outbox.open(IDS[0], Fence(0, 1), 0), (7,), NOTHING)
    assert await is_due()
    rig.clock.advance(0.9)
    assert not await is_due()
    rig.clock.advance(0.1)
    assert await is_due()


async def test_a_subscription_ends_with_what_is_unread() -> None:
    rig = Rig(grace_s=3600.0)
    reader = rig.routers.subscribe(ROUTER_ID, [])
    await reader.next_frame()
    outbox = rig.routers.outbox_of(ROUTER_ID)
    outbox.put(outbox.open(IDS[0], Fence(0, 1), 0), (7,), NOTHING)
    rig.routers.close()
    frame = await reader.next_frame()
    assert frame is not None
    assert [list(output.token_ids) for output in frame.outputs] == [[7]]
    assert await reader.next_frame() is None


async def test_whoever_reads_too_little_is_named() -> None:
    rig = Rig(grace_s=3600.0)
    outbox = rig.routers.outbox_of(ROUTER_ID)
    letters = outbox.open(IDS[0], Fence(0, 1), 0)
    outbox.put(letters, (1, 2, 3, 4), NOTHING)
    assert rig.routers.overfull() == []
    outbox.put(letters, (5,), NOTHING)
    assert rig.routers.overfull() == [IDS[0]]
    rig.routers.ack(ROUTER_ID, [Ack(handoff_id=IDS[0], next_position=1)])
    assert rig.routers.overfull() == []


async def test_changes_of_the_cache_ride_on_frames_for_those_who_want_them() -> None:
    rig = Rig(grace_s=3600.0)
    rig.cache.insert([name_of(1)], [1])
    told = [
        rig.routers.subscribe(RouterId("deaf"), []),
        rig.routers.subscribe(ROUTER_ID, [], wants_kv_events=True),
    ]
    first = [await reader.next_frame() for reader in told]
    rig.cache.insert([name_of(2)], [2])
    rig.clock.advance(1.0)
    second = [await reader.next_frame() for reader in told]
    rig.clock.advance(1.0)
    third = [await reader.next_frame() for reader in told]
    news = [[frame and frame.kv_news for frame in frames] for frames in (first, second, third)]
    assert news == [
        [None, KvNews(is_snapshot=True, stored=(1,), removed=())],
        [None, KvNews(is_snapshot=False, stored=(2,), removed=())],
        [None, None],
    ]
    rig.routers.close()


async def test_routers_are_bounded() -> None:
    rig = Rig(grace_s=3600.0)
    for n in range(MAX_ROUTERS):
        rig.routers.outbox_of(RouterId(f"router-{n}"))
    with pytest.raises(Saturated, match=f"{MAX_ROUTERS} routers"):
        rig.routers.outbox_of(RouterId("one-more"))
    rig.routers.close()


LOAD = Load(num_blocks=64, num_free_blocks=32)
CHANGES = [
    ("nothing", LOAD, False),
    ("a few blocks", replace(LOAD, num_free_blocks=28), False),
    ("many blocks", replace(LOAD, num_free_blocks=27), True),
    ("one more answer", replace(LOAD, num_decoding=1), True),
    ("one more prompt", replace(LOAD, num_prefilling=1), True),
    ("one more handoff", replace(LOAD, num_incoming=1), True),
    ("one more in host memory", replace(LOAD, num_swapped=1), True),
    ("draining", replace(LOAD, draining=True), True),
    ("longer contexts", replace(LOAD, num_context_tokens=9), False),
]


@pytest.mark.parametrize(
    ("now", "want"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES]
)
def test_what_is_worth_a_frame(now: Load, want: bool) -> None:
    assert is_material(LOAD, now) == want
