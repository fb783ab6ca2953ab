"""What every registry promises of settings and quotas."""

import asyncio

import pytest

from core.errors import ConfigError
from core.ids import RouterId
from core.settings import MAX_SETTINGS_BYTES
from registry.api import QuotaAsk, QuotaGrant, Registry, RegistryUnavailable
from registry.editions import MAX_EDITIONS, Draft, EditionConflict
from tests.contract.conftest import Cluster

SHORT_S = 0.2
LONG_S = 60.0


def draft(text: str, restores: int = 0) -> Draft:
    return Draft(text=text, author="Zoë \n 1 2", restores=restores)


async def test_editions_are_numbered_and_kept_as_they_were(
    registry: Registry, other: Registry
) -> None:
    assert await registry.settings_version() == 0
    assert await registry.editions() == ()
    before_s = await registry.now_s()
    texts = ["a = 1\n", 'b = "ä 7"\n']
    for i, text in enumerate(texts):
        assert await registry.put_settings(draft(text, restores=i)) == i + 1
    found = await other.editions()
    assert [(e.version, e.text, e.author, e.restores) for e in found] == [
        (i + 1, text, "Zoë \n 1 2", i) for i, text in enumerate(texts)
    ]
    assert all(before_s - 1 <= e.at_s <= before_s + 60 for e in found)
    assert await other.settings_version() == 2


async def test_only_the_last_are_kept(registry: Registry) -> None:
    for i in range(MAX_EDITIONS + 3):
        await registry.put_settings(draft(str(i)))
    found = await registry.editions()
    assert [e.version for e in found] == list(range(4, MAX_EDITIONS + 4))


async def test_of_many_who_expect_the_same_one_wins(registry: Registry, other: Registry) -> None:
    async def put(handle: Registry, i: int) -> int:
        try:
            return await handle.put_settings(draft(str(i)), expected_version=0)
        except EditionConflict:
            return 0

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(put((registry, other)[i % 2], i)) for i in range(8)]
    assert sorted(task.result() for task in tasks) == [0] * 7 + [1]
    assert await registry.put_settings(draft("next"), expected_version=1) == 2


async def test_what_is_too_long_is_refused_before_it_is_sent(registry: Registry) -> None:
    with pytest.raises(ConfigError):
        await registry.put_settings(draft("x" * (MAX_SETTINGS_BYTES + 1)))
    assert await registry.settings_version() == 0


def ask(router: str, share: float, demand: float = 0.0, tenant: str = "t") -> QuotaAsk:
    return QuotaAsk(tenant=tenant, router_id=RouterId(router), share=share, demand=demand)


async def test_leases_of_a_tenant_never_sum_to_more_than_one(registry: Registry) -> None:
    lease = registry.lease_quota
    assert await lease(ask("a", 0.7, 10.0), ttl_s=LONG_S) == grant(0.7, 0.0, 0)
    assert await lease(ask("b", 0.7, 5.0), ttl_s=LONG_S) == grant(0.3, 10.0, 1)
    # One's own lease is replaced, not added to.
    assert await lease(ask("a", 0.4, 1.0), ttl_s=LONG_S) == grant(0.4, 5.0, 1)
    assert await lease(ask("b", 0.7, 5.0), ttl_s=LONG_S) == grant(0.6, 1.0, 1)
    assert await lease(ask("c", 1.0, 5.0), ttl_s=LONG_S) == grant(0.0, 6.0, 2)
    # Of another tenant, the one without a name too, nothing is leased.
    assert await lease(ask("c", 1.0, tenant=""), ttl_s=LONG_S) == grant(1.0, 0.0, 0)
    assert await lease(ask("c", 1.0, tenant="*:?"), ttl_s=LONG_S) == grant(1.0, 0.0, 0)


async def test_a_lease_ends_by_itself(registry: Registry) -> None:
    await registry.lease_quota(ask("a", 1.0), ttl_s=SHORT_S)
    async with asyncio.timeout(10):
        while (await registry.lease_quota(ask("b", 1.0), ttl_s=LONG_S)).share < 1:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the clock of another process: there is no event


async def test_an_empty_store_leases_anew(registry: Registry, cluster: Cluster) -> None:
    await registry.lease_quota(ask("a", 1.0), ttl_s=LONG_S)
    await registry.put_settings(draft("x"))
    await cluster.flush()
    assert await registry.lease_quota(ask("b", 1.0), ttl_s=LONG_S) == grant(1.0, 0.0, 0)
    assert await registry.settings_version() == 0


async def test_a_store_that_is_away_says_so(registry: Registry, cluster: Cluster) -> None:
    await cluster.lose()
    for call in (
        registry.settings_version(),
        registry.editions(),
        registry.put_settings(draft("x")),
        registry.lease_quota(ask("a", 1.0), ttl_s=LONG_S),
    ):
        with pytest.raises(RegistryUnavailable):
            await call


def grant(share: float, other_demand: float, num_others: int) -> QuotaGrant:
    return QuotaGrant(
        share=pytest.approx(share),  # type: ignore[arg-type]
        other_demand=other_demand,
        num_others=num_others,
    )
