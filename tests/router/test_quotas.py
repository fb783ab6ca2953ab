"""Quotas over several routers: by demand, never past the limit, never waiting for the store."""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.clock import ManualClock
from core.errors import QuotaExceeded
from core.ids import RouterId
from core.settings import Settings, TenantSettings
from registry.api import RegistryUnavailable
from registry.memory import MemoryRegistry, MemoryStore
from router.quotas import LEASE_S, RECONCILE_S, Quotas

RATE, BURST = 100.0, 300.0
LIMITED = Settings(tenants={"t": TenantSettings(tokens_per_s=RATE, burst_tokens=BURST)})


class Routers:
    """Quotas of some routers on one store and one clock."""

    def __init__(self, num_routers: int) -> None:
        self.clock, self.store = ManualClock(), MemoryStore()
        self.all: list[Quotas] = []
        self.num_taken = 0
        for _ in range(num_routers):
            self.join()

    def join(self) -> None:
        registry = MemoryRegistry(self.store, clock=self.clock)
        quotas = Quotas(registry, RouterId(f"r{len(self.all)}"), self.clock)
        quotas.use(LIMITED)
        self.all.append(quotas)

    async def reconcile(self, *which: int) -> None:
        for i in which or range(len(self.all)):
            try:
                await self.all[i].reconcile()
            except RegistryUnavailable:
                assert not self.store.reachable

    def ask(self, router: int, num_tokens: int) -> bool:
        try:
            self.all[router].admit("t", num_tokens)
        except QuotaExceeded:
            return False
        self.num_taken += num_tokens
        return True


async def test_alone_it_has_all_of_it() -> None:
    on = Routers(1)
    await on.reconcile()
    assert on.ask(0, int(BURST))
    with pytest.raises(QuotaExceeded) as refused:
        on.all[0].admit("t", 50)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    on.clock.advance(0.5)
    assert on.ask(0, 50)


async def test_what_was_not_used_comes_back() -> None:
    on = Routers(1)
    await on.reconcile()
    assert on.ask(0, 300)
    on.all[0].refund("t", 100)
    assert not on.ask(0, 101)
    assert on.ask(0, 100)


async def test_other_tenants_are_not_limited() -> None:
    on = Routers(1)
    await on.reconcile()
    for _ in range(100):
        on.all[0].admit("somebody", 1_000_000)


async def test_shares_follow_demand() -> None:
    on = Routers(2)
    await on.reconcile()
    for _ in range(6):
        on.clock.advance(RECONCILE_S)
        for _ in range(20):
            on.ask(1, 10)
        await on.reconcile()
    before = on.num_taken
    for _ in range(20):
        on.clock.advance(RECONCILE_S)
        while on.ask(1, 10):
            pass
        on.ask(1, 10)
        await on.reconcile()
    # Nearly all of it, though the other router is there.
    assert (on.num_taken - before) / (20 * RECONCILE_S) > 0.85 * RATE


async def test_the_last_share_holds_while_the_store_is_away() -> None:
    on = Routers(2)
    for _ in range(3):
        on.clock.advance(RECONCILE_S)
        on.ask(0, 10)
        on.ask(1, 10)
        await on.reconcile()
    on.store.set_reachable(False)
    on.clock.advance(10 * LEASE_S)
    await on.reconcile()
    assert on.ask(0, 50)
    assert on.ask(1, 50)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 200)),
        st.tuples(st.just("pass"), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("reconcile"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("store"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("join"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(STEPS)
def test_together_they_never_pass_the_limit(steps: list[tuple[str, int, int]]) -> None:
    """However joins, asks, reconciliations and outages shorter than a lease fall together."""
    asyncio.run(_run(steps))


async def _run(steps: list[tuple[str, int, int]]) -> None:
    on = Routers(1)
    await on.reconcile()
    began_at_s, num_largest, away_s = on.clock.now_s(), 0, 0.0
    for what, number, num_tokens in steps:
        number %= len(on.all) if what in ("ask", "reconcile") else 100
        if what == "ask" and on.ask(number, num_tokens):
            # Of a request larger than a share's bucket the rest is owed.
            num_largest = max(num_largest, num_tokens)
        elif what == "join" and len(on.all) < 3 and on.store.reachable:
            # A router serves nobody before it was told its shares.
            on.join()
            await on.reconcile(len(on.all) - 1)
        elif what == "pass":
            step_s = number / 10
            if not on.store.reachable and away_s + step_s > LEASE_S / 2:
                on.store.set_reachable(True)
            away_s = 0.0 if on.store.reachable else away_s + step_s
            on.clock.advance(step_s)
            # As each does every second, when the store lets it.
            await on.reconcile()
        elif what == "reconcile":
            await on.reconcile(number)
        elif what == "store":
            on.store.set_reachable(bool(number))
        allowed = BURST + RATE * (on.clock.now_s() - began_at_s)
        assert on.num_taken <= allowed + 3 * num_largest


async def test_under_load_three_routers_stay_within_a_tenth() -> None:
    on, rng = Routers(0), Random(1)
    taken_in_s = 60.0
    on.join()
    await on.reconcile()
    for second in range(int(taken_in_s)):
        if second in (3, 7):
            on.join()
        for _ in range(60):
            on.ask(rng.randrange(len(on.all)), rng.randrange(1, 40))
            on.clock.advance(1 / 60)
        await on.reconcile()
    allowed = BURST + RATE * taken_in_s
    assert 0.8 * allowed <= on.num_taken <= 1.1 * allowed
