"""The heartbeat in virtual time: when it announces, how it waits, how it leaves."""

import asyncio
import random

import pytest

from core.clock import ManualClock
from core.errors import ConfigError
from core.member import Member, Role
from core.waiting import wait_at_most
from registry.api import RegistryUnavailable
from registry.backoff import Outage
from registry.heartbeat import keep_announced
from registry.memory import MemoryRegistry, MemoryStore
from tests.registry.support import make_member


class Script:
    """Waits by moving the clock; before each wait it does what the test planned for that beat."""

    def __init__(self, store: MemoryStore, clock: ManualClock, events: dict[int, str]) -> None:
        self.store, self.clock, self.events = store, clock, events
        self.waits_s: list[float] = []
        self.member = make_member()

    async def wait(self, stop: asyncio.Event, duration_s: float) -> None:
        self.waits_s.append(duration_s)
        self.clock.advance(duration_s)
        match self.events.get(len(self.waits_s)):
            case "flush":
                self.store.flush()
            case "lose":
                self.store.set_reachable(False)
            case "bring back":
                self.store.set_reachable(True)
            case "new role":
                self.member = make_member(role=Role.MIXED)
            case "stop":
                stop.set()
            case "look":
                observer = MemoryRegistry(self.store, clock=self.clock)
                assert await observer.members() == (self.member,)


CASES = [
    # id, what happens at which beat, beats that back off
    ("steady", {3: "look", 50: "look", 51: "stop"}, set()),
    ("flushed: back one beat later", {2: "flush", 3: "look", 4: "stop"}, set()),
    ("a new role shows one beat later", {2: "new role", 3: "look", 4: "stop"}, set()),
    (
        "lost: back one wait later",
        {2: "lose", 9: "bring back", 10: "look", 11: "stop"},
        {*range(3, 10)},
    ),
    ("lost from the start", {0: "", 1: "lose", 3: "bring back", 4: "look", 5: "stop"}, {2, 3}),
    ("stopped while lost", {1: "lose", 3: "stop"}, {2, 3}),
]


@pytest.mark.parametrize(("events", "backs_off"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
async def test_heartbeat(events: dict[int, str], backs_off: set[int]) -> None:
    script = Script(MemoryStore(), ManualClock(), events)
    registry = MemoryRegistry(script.store, clock=script.clock)
    async with asyncio.timeout(10):
        await keep_announced(
            registry, lambda: script.member, stop=asyncio.Event(), wait=script.wait
        )
    for beat, waited_s in enumerate(script.waits_s, start=1):
        assert waited_s <= 2.0
        assert (waited_s != 1.0) == (beat in backs_off), f"beat {beat} waited {waited_s} s"
    if script.store.reachable:
        assert await registry.members() == ()


async def test_it_withdraws_when_cancelled() -> None:
    registry, announced = MemoryRegistry(), asyncio.Event()

    async def wait(stop: asyncio.Event, duration_s: float) -> None:
        announced.set()
        await wait_at_most(stop, 30)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            keep_announced(registry, make_member, stop=asyncio.Event(), wait=wait)
        )
        async with asyncio.timeout(5):
            await announced.wait()
        assert len(await registry.members()) == 1
        task.cancel()
    assert await registry.members() == ()


async def test_nothing_is_announced_once_stopped() -> None:
    stop = asyncio.Event()
    stop.set()

    def never() -> Member:
        raise AssertionError("asked for a member")

    await keep_announced(MemoryRegistry(), never, stop=stop)


async def test_a_bug_of_the_member_source_ends_the_loop() -> None:
    def buggy() -> Member:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await keep_announced(MemoryRegistry(), buggy, stop=asyncio.Event())


@pytest.mark.parametrize(("ttl_s", "interval_s"), [(1.0, 1.0), (1.9, 1.0), (5.0, 0.0), (5.0, -1)])
async def test_a_ttl_that_one_late_beat_would_break_is_refused(
    ttl_s: float, interval_s: float
) -> None:
    with pytest.raises(ConfigError):
        await keep_announced(
            MemoryRegistry(), make_member, stop=asyncio.Event(), ttl_s=ttl_s, interval_s=interval_s
        )


@pytest.mark.parametrize("seed", range(20))
def test_delays_grow_are_spread_and_bounded(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="registry")
    outage = Outage("test", random.Random(seed))
    delays_s = [outage.failed(RegistryUnavailable("gone")) for _ in range(2000)]
    for n, delay_s in enumerate(delays_s):
        full_s = min(Outage.MAX_DELAY_S, Outage.FIRST_DELAY_S * 2.0 ** min(n, 20))
        assert full_s / 2 <= delay_s <= full_s
    assert len(set(delays_s)) > 1900
    outage.ended()
    outage.ended()
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert outage.failed(RegistryUnavailable("gone")) <= Outage.FIRST_DELAY_S
