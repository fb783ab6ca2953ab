"""The leader's loop in virtual time: how it is elected, goes on, is deposed, leaves."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import pytest

from core.clock import ManualClock
from core.errors import ConfigError
from core.waiting import wait_at_most
from registry.backoff import Delays
from registry.keeping import keep_leading
from registry.memory import MemoryRegistry, MemoryStore

if TYPE_CHECKING:
    from registry.leader import Leader

ME, ADDRESS = "controller-a", "127.0.0.1:7001"
TTL_S = 5.0


class Script:
    """Waits by moving the clock; after each wait it does what the test planned for that beat."""

    def __init__(self, events: Mapping[int, str]) -> None:
        self.store, self.clock, self.events = MemoryStore(), ManualClock(1000.0), events
        self.registry = MemoryRegistry(self.store, clock=self.clock)
        self.observer = MemoryRegistry(self.store, clock=self.clock)
        self.source: str | None = "the deployment"
        self.waits_s: list[float] = []
        self.terms: list[int] = []
        self.lost: list[Leader] = []
        self.seen: list[tuple[str | None, str | None]] = []
        """Who led, and what the deployment was, at each "look"."""

    async def run(self) -> None:
        async with asyncio.timeout(10):
            await keep_leading(
                self.registry,
                ME,
                ADDRESS,
                on_term=self.terms.append,
                on_lost=self.lost.append,
                deployment=lambda: self.source,
                stop=asyncio.Event(),
                wait=self.wait,
            )

    async def wait(self, stop: asyncio.Event, duration_s: float) -> None:
        self.waits_s.append(duration_s)
        self.clock.advance(duration_s)
        if len(self.waits_s) in self.events:
            for event in self.events[len(self.waits_s)].split(", "):
                await self.happen(event, stop)

    async def happen(self, event: str, stop: asyncio.Event) -> None:
        match event:
            case "flush":
                self.store.flush()
            case "lose" | "bring back":
                self.store.set_reachable(event == "bring back")
            case "freeze":  # of the process, for longer than its TTL
                self.clock.advance(2 * TTL_S)
            case "another":
                await self.elect("another")
            case "forget":
                self.store.deployment = None
            case "no source":
                self.source = None
            case "look":
                leader = await self.observer.leader()
                deployment = await self.observer.deployment()
                self.seen.append((leader.holder if leader else None, deployment))
            case "stop":
                stop.set()

    async def elect(self, holder: str) -> int:
        return await self.observer.lead(holder, "127.0.0.1:7002", term=None, ttl_s=TTL_S)


LEADING = (ME, "the deployment")
CASES = [
    # id, what happens after which beat, what is seen, who took over
    ("steady", {1: "look", 60: "look", 61: "stop"}, [LEADING] * 2, None),
    ("flushed: back one beat later", {1: "flush", 2: "look", 3: "stop"}, [LEADING], None),
    ("only the deployment is gone", {1: "forget", 2: "look", 3: "stop"}, [LEADING], None),
    (
        "nothing to put again",
        {1: "no source, flush", 2: "look", 3: "stop"},
        [(ME, None)],
        None,
    ),
    (
        "lost for longer than the TTL",
        {1: "lose", 30: "bring back", 31: "look", 32: "stop"},
        [LEADING],
        None,
    ),
    (
        "lost, and empty when it is back",
        {1: "lose", 4: "flush", 5: "bring back", 6: "look", 7: "stop"},
        [LEADING],
        None,
    ),
    ("frozen, and nobody was faster", {1: "freeze", 2: "look", 3: "stop"}, [LEADING], None),
    ("a faster one after a freeze", {1: "freeze, another"}, [], "another"),
    ("a faster one in an emptied store", {1: "flush, another"}, [], "another"),
    ("deposed after an outage", {1: "lose", 3: "bring back, freeze, another"}, [], "another"),
    ("stopped while lost", {1: "lose", 3: "stop"}, [], None),
]


@pytest.mark.parametrize(
    ("events", "seen", "successor"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_a_leader(
    events: Mapping[int, str], seen: list[tuple[str | None, str | None]], successor: str | None
) -> None:
    script = Script(events)
    await script.run()
    assert script.seen == seen
    assert len(script.terms) == 1
    assert [leader.holder for leader in script.lost] == ([successor] if successor else [])
    assert all(leader.term > script.terms[0] for leader in script.lost)
    assert all(0 < waited_s <= Delays.MAX_DELAY_S for waited_s in script.waits_s)
    was_reachable = script.store.reachable
    script.store.set_reachable(True)
    # It resigned, where it could, and left a successor alone; else its term ends by itself.
    script.clock.advance(TTL_S / 2 if was_reachable else 2 * TTL_S)
    left = await script.observer.leader()
    assert (left.holder if left else None) == successor


async def test_it_waits_as_long_as_another_leads() -> None:
    script = Script({40: "stop"})
    term = await script.elect("another")

    async def wait(stop: asyncio.Event, duration_s: float) -> None:
        await Script.wait(script, stop, duration_s)
        if len(script.waits_s) < 30:
            await script.observer.lead("another", "127.0.0.1:7002", term=term, ttl_s=TTL_S)

    await keep(script, wait)
    assert [len(script.terms), script.lost] == [1, []]
    assert script.terms[0] > term
    assert all(1.0 <= waited_s <= 2.0 for waited_s in script.waits_s[4:30])  # backed off


@pytest.mark.parametrize("event", ["lose", ""])
async def test_stopped_before_it_leads_it_never_did(event: str) -> None:
    script = Script({1: event, 5: "stop"} if event else {5: "stop"})
    await script.elect("another")
    await script.run()
    assert [script.terms, script.lost] == [[], []]


async def test_it_resigns_when_cancelled() -> None:
    script, leading = Script({}), asyncio.Event()

    async def wait(stop: asyncio.Event, duration_s: float) -> None:
        leading.set()
        await wait_at_most(stop, 30)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(keep(script, wait))
        async with asyncio.timeout(5):
            await leading.wait()
        assert await script.observer.leader() is not None
        task.cancel()
    assert await script.observer.leader() is None
    assert script.lost == []


async def test_a_bug_of_a_listener_ends_the_loop_and_the_term() -> None:
    script = Script({})

    def buggy(term: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await keep_leading(
            script.registry,
            ME,
            ADDRESS,
            on_term=buggy,
            on_lost=script.lost.append,
            deployment=lambda: None,
            stop=asyncio.Event(),
        )
    assert await script.observer.leader() is None


@pytest.mark.parametrize(("ttl_s", "interval_s"), [(1.0, 1.0), (1.9, 1.0), (5.0, 0.0), (5.0, -1)])
async def test_a_ttl_that_one_late_renewal_would_break_is_refused(
    ttl_s: float, interval_s: float
) -> None:
    script = Script({})
    with pytest.raises(ConfigError):
        await keep(script, script.wait, ttl_s=ttl_s, interval_s=interval_s)


async def keep(
    script: Script,
    wait: Callable[[asyncio.Event, float], Awaitable[object]],
    *,
    ttl_s: float = TTL_S,
    interval_s: float = 1.0,
) -> None:
    await keep_leading(
        script.registry,
        ME,
        ADDRESS,
        on_term=script.terms.append,
        on_lost=script.lost.append,
        deployment=lambda: script.source,
        stop=asyncio.Event(),
        ttl_s=ttl_s,
        interval_s=interval_s,
        wait=wait,
    )
