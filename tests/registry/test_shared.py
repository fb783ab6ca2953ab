"""The cluster's key and time: waited for, kept, and agreed on after the store lost them."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from core.clock import ManualClock
from registry.api import RegistryUnavailable, SharedKeyDamaged
from registry.connect import connect
from registry.embedded import EmbeddedValkey
from registry.memory import MemoryRegistry, MemoryStore
from registry.shared import JOIN_WAIT_S, REREAD_S, Shared, join_shared, keep_shared

if TYPE_CHECKING:
    from collections.abc import Callable

OWN, ANOTHER = bytes(range(32)), b"x" * 32


class Rig:
    """A store with a clock of its own, and a process whose pauses a script ends."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store_clock = ManualClock(3600.0)
        self.clock = ManualClock(5.0)
        self.stop = asyncio.Event()
        self.pauses_s: list[float] = []
        self.on_pause: list[Callable[[], object]] = []
        """What happens in each pause; in the one after the last, the process is stopped."""
        self.keys: list[bytes] = []

    @property
    def registry(self) -> MemoryRegistry:
        return MemoryRegistry(self.store, clock=self.store_clock)

    async def wait(self, stop: asyncio.Event, delay_s: float) -> None:
        self.pauses_s.append(delay_s)
        self.clock.advance(delay_s)
        self.store_clock.advance(delay_s)
        if self.on_pause:
            self.on_pause.pop(0)()
        else:
            stop.set()

    async def join(self) -> Shared:
        return await join_shared(
            self.registry, self.clock, stop=self.stop, proposal=OWN, wait=self.wait
        )

    async def keep(self, shared: Shared) -> None:
        await keep_shared(shared, self.registry, self.keys.append, stop=self.stop, wait=self.wait)


async def test_time_is_the_stores_whatever_the_hosts_clock_says() -> None:
    rig = Rig()
    shared = await rig.join()
    assert shared.now_s() == 3600.0
    rig.clock.advance(2.0)
    assert shared.now_s() == 3602.0
    assert shared.key == OWN
    assert OWN.hex() not in repr(shared)
    assert repr(OWN) not in repr(shared)


async def test_a_store_that_is_away_is_waited_for() -> None:
    rig = Rig()
    rig.store.set_reachable(False)
    rig.on_pause = [lambda: None, lambda: rig.store.set_reachable(True)]
    assert (await rig.join()).key == OWN
    assert len(rig.pauses_s) == 2


async def test_not_for_ever() -> None:
    rig = Rig()
    rig.store.set_reachable(False)
    rig.on_pause = [lambda: None] * 1000
    with pytest.raises(RegistryUnavailable):
        await rig.join()
    assert 0.9 * JOIN_WAIT_S < sum(rig.pauses_s) <= JOIN_WAIT_S


async def test_a_process_that_is_stopped_waits_no_longer() -> None:
    rig = Rig()
    rig.store.set_reachable(False)
    with pytest.raises(RegistryUnavailable):
        await rig.join()
    assert len(rig.pauses_s) == 1


async def test_a_damaged_key_is_not_waited_for() -> None:
    rig = Rig()
    rig.store.shared_key = "damaged"
    with pytest.raises(SharedKeyDamaged):
        await rig.join()
    assert rig.pauses_s == []


async def test_an_emptied_store_is_told_the_key_again() -> None:
    rig = Rig()
    shared = await rig.join()
    rig.on_pause = [rig.store.flush]
    await rig.keep(shared)
    assert rig.store.shared_key == OWN.hex()
    assert (shared.key, rig.keys) == (OWN, [])
    assert rig.pauses_s == [REREAD_S] * 2


async def test_where_a_newcomer_was_faster_all_take_its_key() -> None:
    rig = Rig()
    shared = await rig.join()

    def newcomer() -> None:
        rig.store.flush()
        rig.store.shared_key = ANOTHER.hex()

    rig.on_pause = [newcomer, lambda: None]
    await rig.keep(shared)
    assert (shared.key, rig.keys) == (ANOTHER, [ANOTHER])


async def test_a_clock_of_the_store_that_jumps_is_followed() -> None:
    rig = Rig()
    shared = await rig.join()
    rig.on_pause = [lambda: rig.store_clock.advance(3600.0)]
    await rig.keep(shared)
    assert shared.now_s() == pytest.approx(rig.store_clock.now_s())


@pytest.mark.parametrize("damage", ["away", "damaged"])
async def test_an_outage_costs_nothing_that_is_known(damage: str) -> None:
    rig = Rig()
    shared = await rig.join()

    def break_it() -> None:
        rig.store.reachable = damage != "away"
        rig.store.shared_key = "damaged" if damage == "damaged" else None

    rig.on_pause = [break_it, lambda: None]
    await rig.keep(shared)
    assert (shared.key, rig.keys) == (OWN, [])
    assert shared.now_s() == pytest.approx(rig.store_clock.now_s())


async def test_two_processes_agree_over_a_real_store() -> None:
    async with EmbeddedValkey() as valkey:
        handles = [connect(valkey.url, "test") for _ in range(2)]
        clocks = (ManualClock(0.0), ManualClock(3600.0))
        one, other = [
            await join_shared(handle, clock, stop=asyncio.Event())
            for handle, clock in zip(handles, clocks, strict=True)
        ]
        assert one.key == other.key
        # Seconds since 1970, both; far less apart than the slack of a minute.
        assert one.now_s() > 1.6e9
        assert abs(one.now_s() - other.now_s()) < 30.0
        for handle in handles:
            await handle.close()
