"""What every registry promises; over the in-memory one and over a real Valkey server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from core.errors import ConfigError
from core.member import Role
from registry.api import (
    MAX_TTL_S,
    Registry,
    RegistryUnavailable,
    SharedKeyDamaged,
)
from registry.deployment import MAX_DEPLOYMENT_BYTES
from registry.heartbeat import keep_announced
from tests.contract.conftest import PACE, Cluster
from tests.registry.support import ids, logged, make_member, news, news_until, watching

LONG_S = 60.0
SHORT_S = 0.2


async def test_a_fresh_store_is_empty(registry: Registry) -> None:
    assert await registry.members() == ()
    assert await registry.deployment() is None
    assert await registry.leader() is None
    assert await registry.problems() == ()


async def test_who_is_announced_is_seen_by_all_whole_and_in_order(
    registry: Registry, other: Registry
) -> None:
    members = tuple(make_member(f"decode-{i}", tp=1, num_blocks=i + 1) for i in range(9))
    async with asyncio.TaskGroup() as group:
        for member in reversed(members):
            group.create_task(registry.announce(member, ttl_s=LONG_S))
    assert await other.members() == members


async def test_announcing_again_changes_nothing_and_a_new_record_replaces(
    registry: Registry,
) -> None:
    member = make_member(role=Role.DECODE)
    for _ in range(3):
        await registry.announce(member, ttl_s=LONG_S)
    assert await registry.members() == (member,)
    changed = make_member(role=Role.MIXED)
    await registry.announce(changed, ttl_s=LONG_S)
    assert await registry.members() == (changed,)


async def test_withdraw_removes_one_and_may_be_repeated(registry: Registry) -> None:
    leaving, staying = make_member("a"), make_member("b")
    for member in (leaving, staying):
        await registry.announce(member, ttl_s=LONG_S)
    for _ in range(2):
        await registry.withdraw(leaving)
        assert await registry.members() == (staying,)


async def test_the_late_withdraw_of_a_dead_process_spares_its_successor(
    registry: Registry,
) -> None:
    old, new = make_member(incarnation="old"), make_member(incarnation="new")
    await registry.announce(old, ttl_s=LONG_S)
    await registry.announce(new, ttl_s=LONG_S)
    await registry.withdraw(old)
    assert await registry.members() == (new,)


async def test_who_falls_silent_is_dropped_at_the_end_of_its_ttl(
    registry: Registry, other: Registry
) -> None:
    await registry.announce(make_member("staying"), ttl_s=LONG_S)
    await registry.announce(make_member("dying"), ttl_s=SHORT_S)
    async with watching(other) as watch:
        assert ids(await news(watch)) == ["dying", "staying"]
        assert ids(await news(watch)) == ["staying"]
    assert ids(await registry.members()) == ["staying"]


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, MAX_TTL_S + 1, float("nan"), float("inf")])
async def test_a_senseless_ttl_is_refused(registry: Registry, ttl_s: float) -> None:
    with pytest.raises(ConfigError):
        await registry.announce(make_member(), ttl_s=ttl_s)
    assert await registry.members() == ()


async def test_a_watch_tells_the_present_then_every_change_and_nothing_else(
    registry: Registry, other: Registry
) -> None:
    a, b = make_member("a"), make_member("b")
    async with watching(other) as watch:
        assert await news(watch) == ()
        await registry.announce(a, ttl_s=LONG_S)
        assert await news(watch) == (a,)
        await registry.announce(a, ttl_s=LONG_S)  # a heartbeat: no news
        await registry.announce(b, ttl_s=LONG_S)
        assert await news(watch) == (a, b)
        await registry.withdraw(a)
        assert await news(watch) == (b,)


async def test_two_watches_of_one_handle_see_the_same(registry: Registry) -> None:
    async with watching(registry) as first, watching(registry) as second:
        for watch in (first, second):
            assert await news(watch) == ()
        await registry.announce(make_member(), ttl_s=LONG_S)
        for watch in (first, second):
            assert ids(await news(watch)) == ["decode-0"]


@pytest.mark.parametrize("text", ["", "[prefill]\ntp = 2\n", "Fünf\n日本\x00\r\n", "x" * 100_000])
async def test_the_deployment_comes_back_as_it_was_put(
    registry: Registry, other: Registry, text: str
) -> None:
    await registry.put_deployment("an earlier one", term=1)
    await registry.put_deployment(text, term=1)
    assert await other.deployment() == (text or None)


async def test_a_deployment_past_its_bound_is_refused_and_the_old_one_stays(
    registry: Registry,
) -> None:
    await registry.put_deployment("small", term=1)
    with pytest.raises(ConfigError, match=str(MAX_DEPLOYMENT_BYTES)):
        await registry.put_deployment("é" * (MAX_DEPLOYMENT_BYTES // 2 + 1), term=1)
    assert await registry.deployment() == "small"
    largest = "x" * MAX_DEPLOYMENT_BYTES
    await registry.put_deployment(largest, term=1)
    assert await registry.deployment() == largest


async def test_the_shared_key_is_the_first_one_proposed(
    registry: Registry, other: Registry
) -> None:
    first, second = bytes(range(32)), bytes(32)
    assert await registry.shared_key(first) == first
    assert await other.shared_key(second) == first
    assert await registry.shared_key(second) == first


async def test_all_who_propose_at_once_get_the_same_key(
    registry: Registry, other: Registry
) -> None:
    keys: list[bytes] = []

    async def ask(handle: Registry, n: int) -> None:
        keys.append(await handle.shared_key(bytes([n] * 32)))

    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(ask((registry, other)[n % 2], n))
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("num_bytes", [0, 16, 31, 33])
async def test_a_key_of_another_length_is_refused(registry: Registry, num_bytes: int) -> None:
    with pytest.raises(ConfigError, match=f"{num_bytes} bytes, must be 32"):
        await registry.shared_key(bytes(num_bytes))
    assert await registry.shared_key(bytes(32)) == bytes(32)


@pytest.mark.parametrize("text", ["zz", "AB" * 32, "ab" * 31, "ab" * 33, "\x00é" * 16, "g" * 64])
async def test_a_damaged_shared_key_is_told_and_not_shown(
    cluster: Cluster, registry: Registry, text: str
) -> None:
    await cluster.damage_shared_key(text)
    with pytest.raises(SharedKeyDamaged, match="64 hexadecimal digits") as caught:
        await registry.shared_key(bytes(32))
    assert text not in str(caught.value)
    assert not caught.value.retryable


async def test_after_flushall_members_are_back_within_a_heartbeat_and_were_never_gone(
    cluster: Cluster, registry: Registry, other: Registry
) -> None:
    stop, quiet, interval_s = asyncio.Event(), make_member("quiet"), 0.5
    member = make_member("beating")
    await registry.announce(quiet, ttl_s=LONG_S)
    async with watching(other) as watch, asyncio.TaskGroup() as group:
        group.create_task(
            keep_announced(registry, lambda: member, stop=stop, interval_s=interval_s)
        )
        await news_until(watch, lambda m: m == (member, quiet))
        await cluster.flush()
        # The one that never announces again goes after the grace; the other was never missing.
        async with asyncio.timeout(interval_s + 1.0):
            await _until_members(other, ["beating"])
        assert await news(watch) == (member,)
        stop.set()
    assert await other.members() == ()


async def test_an_outage_hides_nobody(
    cluster: Cluster, registry: Registry, other: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="registry")
    before, after = make_member("before"), make_member("zafter")
    await registry.announce(before, ttl_s=SHORT_S)
    async with watching(other) as watch:
        assert await news(watch) == (before,)
        async with asyncio.TaskGroup() as group:
            next_news = group.create_task(news(watch))
            await cluster.lose()
            await logged(caplog, "registry lost")
            for call in (
                registry.members(),
                registry.announce(before, ttl_s=LONG_S),
                registry.shared_key(bytes(32)),
            ):
                with pytest.raises(RegistryUnavailable) as caught:
                    await call
                assert caught.value.reason == "REGISTRY_UNAVAILABLE"
                assert caught.value.retryable
            assert not next_news.done()
            await cluster.bring_back()
            await registry.announce(after, ttl_s=LONG_S)
        # Its TTL ran out while nobody could be told that it lives.
        assert next_news.result() == (before, after)
        assert await news(watch) == (after,)
    assert caplog.text.count("registry lost") == 1


async def test_a_heartbeat_survives_an_outage(
    cluster: Cluster, registry: Registry, other: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="registry")
    stop, member = asyncio.Event(), make_member()
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_announced(registry, lambda: member, stop=stop, interval_s=0.05))
        async with asyncio.timeout(10):
            await _until_members(other, ["decode-0"])
            await cluster.lose()
            await logged(caplog, "registry lost: heartbeat")
            await cluster.bring_back()
            await cluster.flush()
            await _until_members(other, ["decode-0"])
        stop.set()
    assert await other.members() == ()


async def test_close_ends_watches_and_may_be_repeated(registry: Registry, other: Registry) -> None:
    async with watching(registry) as watch:
        assert await news(watch) == ()
        async with asyncio.TaskGroup() as group:
            rest = group.create_task(_drain(watch))
            await registry.close()
            await registry.close()
            async with asyncio.timeout(5):
                assert await rest == []
    with pytest.raises(RegistryUnavailable):
        await registry.members()
    assert await other.members() == ()  # a handle of its own


async def test_a_watch_may_be_cancelled_and_another_begun(registry: Registry) -> None:
    for _ in range(3):
        async with watching(registry) as watch:
            assert await news(watch) == ()
            with _never_ends():
                async with asyncio.timeout(PACE.reread_s / 2):
                    await anext(watch)


@contextmanager
def _never_ends() -> Iterator[None]:
    with pytest.raises(TimeoutError):
        yield


async def _drain(watch: AsyncIterator[object]) -> list[object]:
    return [members async for members in watch]


async def _until_members(registry: Registry, want: list[str]) -> None:
    """A watch without a past: it shows what the store holds, and holds back nothing."""
    async with watching(registry) as watch:
        await news_until(watch, lambda members: ids(members) == want)
