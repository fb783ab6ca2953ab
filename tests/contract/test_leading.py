"""What every registry promises of leadership: one at a time, and terms that only grow."""

import asyncio

import pytest

from core.errors import ConfigError
from registry.api import MAX_TTL_S, Registry, RegistryUnavailable
from registry.keeping import keep_leading
from registry.leader import MAX_TERM, AnotherLeads, Leader
from tests.contract.conftest import Cluster
from tests.registry.support import logged

LONG_S = 60.0
SHORT_S = 0.2
A, B = "controller-a", "controller-b"
AT = {A: "127.0.0.1:7001", B: "[::1]:7002"}


async def elect(registry: Registry, holder: str, ttl_s: float = LONG_S) -> int:
    return await registry.lead(holder, AT[holder], term=None, ttl_s=ttl_s)


async def renew(registry: Registry, holder: str, term: int, ttl_s: float = LONG_S) -> int:
    return await registry.lead(holder, AT[holder], term=term, ttl_s=ttl_s)


def leader(holder: str, term: int) -> Leader:
    return Leader(term=term, holder=holder, address=AT[holder])


async def free(registry: Registry) -> None:
    async with asyncio.timeout(10):
        while await registry.leader() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the clock of another process: there is no event


async def test_one_leads_and_the_others_are_told_who(registry: Registry, other: Registry) -> None:
    assert await other.leader() is None
    term = await elect(registry, A)
    assert await other.leader() == leader(A, term)
    for _ in range(2):  # nor is it granted twice to the same one, which may have been started anew
        for holder in (A, B):
            with pytest.raises(AnotherLeads, match=f"{A} at {AT[A]} has term {term}") as refused:
                await elect(other, holder)
            assert refused.value.leader == leader(A, term)
            assert refused.value.status == "ABORTED"
    assert await renew(registry, A, term) == term
    assert await other.leader() == leader(A, term)


async def test_of_many_who_ask_at_once_one_is_elected(registry: Registry, other: Registry) -> None:
    async def ask(handle: Registry, i: int) -> int:
        try:
            return await handle.lead(f"controller-{i}", AT[A], term=None, ttl_s=LONG_S)
        except AnotherLeads:
            return 0

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask((registry, other)[i % 2], i)) for i in range(16)]
    assert len([task for task in tasks if task.result()]) == 1


async def test_terms_grow_from_leader_to_leader(registry: Registry) -> None:
    terms = []
    for holder in (A, B, A, A):
        terms.append(await elect(registry, holder))
        await registry.resign(holder, terms[-1])
    assert terms == sorted(set(terms))
    # A leader of another time than this cluster's: its term is above the store's clock.
    high = MAX_TERM // 2
    assert await renew(registry, A, high) == high
    await registry.resign(A, high)
    assert await elect(registry, B) == high + 1


async def test_who_falls_silent_leads_no_more_but_goes_on_if_nobody_was_faster(
    registry: Registry, other: Registry
) -> None:
    term = await elect(registry, A, SHORT_S)
    await free(registry)
    assert await renew(registry, A, term, SHORT_S) == term
    await free(registry)
    successor = await elect(other, B)
    assert successor > term
    with pytest.raises(AnotherLeads) as lost:
        await renew(registry, A, term)
    assert lost.value.leader == leader(B, successor)
    # Nor when that one has ended: its term was heard of.
    await other.resign(B, successor)
    with pytest.raises(AnotherLeads) as lost:
        await renew(registry, A, term)
    assert lost.value.leader == leader(B, successor)


async def test_an_emptied_store_is_led_again_by_its_leader(
    cluster: Cluster, registry: Registry, other: Registry
) -> None:
    term = await elect(registry, A)
    await cluster.flush()
    assert await other.leader() is None
    assert await renew(registry, A, term) == term
    assert await other.leader() == leader(A, term)


async def test_in_an_emptied_store_a_faster_one_is_above_all_before(
    cluster: Cluster, registry: Registry, other: Registry
) -> None:
    term = await elect(registry, A)
    # The clock grants terms in milliseconds: the next one is another.
    began_s = await registry.now_s()
    async with asyncio.timeout(10):
        while await registry.now_s() < began_s + 0.002:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await cluster.flush()
    successor = await elect(other, B)
    assert successor > term
    with pytest.raises(AnotherLeads):
        await renew(registry, A, term)
    # One of a lower term cannot take it back, whatever became of the other.
    assert await other.leader() == leader(B, successor)


async def test_a_term_belongs_to_its_holder(registry: Registry, other: Registry) -> None:
    term = await elect(registry, A)
    with pytest.raises(AnotherLeads):
        await renew(other, B, term)
    assert await registry.leader() == leader(A, term)


async def test_resigning_is_idempotent_and_spares_a_successor(
    registry: Registry, other: Registry
) -> None:
    await registry.resign(A, 1)  # there was never any
    term = await elect(registry, A)
    for holder, another in ((B, term), (A, term + 1), (A, term - 1)):
        await other.resign(holder, another)
        assert await registry.leader() == leader(A, term)
    for _ in range(2):
        await registry.resign(A, term)
        assert await registry.leader() is None
    successor = await elect(other, B)
    await registry.resign(A, term)
    assert await registry.leader() == leader(B, successor)


async def test_the_deployment_is_the_leaders(registry: Registry, other: Registry) -> None:
    await registry.put_deployment("nobody ever led", term=0)
    term = await elect(registry, A)
    await registry.put_deployment("A's", term=term)
    await registry.resign(A, term)
    await registry.put_deployment("A's, later", term=term)
    successor = await elect(other, B)
    with pytest.raises(AnotherLeads) as refused:
        await registry.put_deployment("too late", term=term)
    assert refused.value.leader == leader(B, successor)
    assert await registry.deployment() == "A's, later"
    await other.put_deployment("B's", term=successor)
    assert await registry.deployment() == "B's"


async def test_an_emptied_store_has_no_deployment(cluster: Cluster, registry: Registry) -> None:
    term = await elect(registry, A)
    await registry.put_deployment("text", term=term)
    await cluster.flush()
    assert await registry.deployment() is None


async def test_a_leader_outlives_its_stores_memory_and_its_store(
    cluster: Cluster, registry: Registry, other: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="registry")
    stops = {A: asyncio.Event(), B: asyncio.Event()}
    terms: dict[str, int] = {}

    async def keep(handle: Registry, holder: str) -> None:
        await keep_leading(
            handle,
            holder,
            AT[holder],
            on_term=lambda term: terms.update({holder: term}),
            on_lost=lambda leader: pytest.fail(f"lost to {leader}"),
            deployment=lambda: f"{holder}'s",
            stop=stops[holder],
            ttl_s=10.0,
            interval_s=0.02,
        )

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(keep(registry, A))
        await led(other, A, f"{A}'s")
        group.create_task(keep(other, B))
        await logged(caplog, "waiting to lead")
        await cluster.lose()
        await logged(caplog, "registry lost: leader")
        await cluster.bring_back()
        await led(registry, A, f"{A}'s")
        stops[A].set()
        await led(registry, B, f"{A}'s")
        await cluster.flush()
        await led(registry, B, f"{B}'s")
        stops[B].set()
    assert terms[B] > terms[A]
    assert await registry.leader() is None


async def led(registry: Registry, holder: str, text: str) -> None:
    """Return once `holder` leads, and the deployment is `text`."""
    while True:
        try:
            found = await registry.leader()
            if found is not None and (found.holder, await registry.deployment()) == (holder, text):
                return
        except RegistryUnavailable:
            pass  # a moment after it is back
        await asyncio.sleep(0)  # another's loop: there is no event


REFUSED = [
    # id, holder, address, term, ttl_s
    ("no holder", "", AT[A], None, 1.0),
    ("a blank", "a b", AT[A], None, 1.0),
    ("too long", "a" * 129, AT[A], None, 1.0),
    ("no port", A, "127.0.0.1", None, 1.0),
    ("a scheme", A, "unix:/tmp/x", None, 1.0),
    ("a line break", A, AT[A] + "\n", None, 1.0),
    ("term 0", A, AT[A], 0, 1.0),
    ("a negative term", A, AT[A], -1, 1.0),
    ("a term past its bound", A, AT[A], MAX_TERM + 1, 1.0),
    ("no time to live", A, AT[A], None, 0.0),
    ("too long a time to live", A, AT[A], None, MAX_TTL_S + 1),
]


@pytest.mark.parametrize(
    ("holder", "address", "term", "ttl_s"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
async def test_senseless_candidates_are_refused(
    registry: Registry, holder: str, address: str, term: int | None, ttl_s: float
) -> None:
    with pytest.raises(ConfigError):
        await registry.lead(holder, address, term=term, ttl_s=ttl_s)
    assert await registry.leader() is None


async def test_a_store_that_is_away_says_so(cluster: Cluster, registry: Registry) -> None:
    term = await elect(registry, A)
    await cluster.lose()
    for call in (
        elect(registry, B),
        renew(registry, A, term),
        registry.leader(),
        registry.resign(A, term),
        registry.put_deployment("text", term=term),
        registry.deployment(),
        registry.state(),
        registry.problems(),
    ):
        with pytest.raises(RegistryUnavailable):
            await call
