"""Settings in force: followed, refused, restored; and what they do to a running router."""

import pytest

from core.errors import InvalidRequest, QuotaExceeded, Saturated
from core.settings import Settings
from registry.editions import Draft
from registry.memory import MemoryRegistry, MemoryStore
from router.steering import Steering
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, settings_pb2, settings_pb2_grpc
from rpc.status import error_from
from tests.router.conftest import OpenStage, Stage
from tests.router.script import BOUND_S

grpc_aio = pytest.importorskip("grpc.aio")


def draft(text: str) -> Draft:
    return Draft(text=text, author="me")


class Told:
    def __init__(self) -> None:
        self.all: list[Settings] = []

    def use(self, settings: Settings) -> None:
        self.all.append(settings)


async def test_each_edition_is_applied_once() -> None:
    registry, told = MemoryRegistry(), Told()
    steering = Steering(registry, (told.use,))
    await steering.refresh()
    assert (steering.version, told.all) == (0, [])
    await registry.put_settings(draft('log_level = "INFO"'))
    for _ in range(3):
        await steering.refresh()
    assert steering.version == 1
    assert [settings.log_level for settings in told.all] == ["INFO"]


async def test_what_cannot_be_read_is_refused_and_the_last_one_holds() -> None:
    registry, told = MemoryRegistry(), Told()
    steering = Steering(registry, (told.use,))
    await registry.put_settings(draft('log_level = "INFO"'))
    await steering.refresh()
    # Of another version of this program.
    await registry.put_settings(draft("[future]\nx = 1"))
    await steering.refresh()
    await steering.refresh()
    assert (steering.version, len(told.all)) == (1, 1)
    await registry.put_settings(draft('log_level = "ERROR"'))
    await steering.refresh()
    assert (steering.version, told.all[-1].log_level) == (3, "ERROR")


async def test_a_store_that_lost_its_memory_is_told_again_once() -> None:
    store = MemoryStore()
    registry = MemoryRegistry(store)
    routers = [Steering(MemoryRegistry(store), ()) for _ in range(2)]
    await registry.put_settings(draft("[limits]\nmax_running = 1"))
    await registry.put_settings(draft("[limits]\nmax_running = 2"))
    for steering in routers:
        await steering.refresh()
    store.flush()
    for _ in range(2):
        for steering in routers:
            await steering.refresh()
    (edition,) = await registry.editions()
    assert (edition.version, edition.restores, edition.author) == (1, 2, "me")
    assert "max_running = 2" in edition.text
    assert [steering.version for steering in routers] == [1, 1]


async def apply(stage: Stage, text: str = "", **fields: object) -> int:
    """Through the router; returns when it is in force there."""
    address = stage.routers[0].address
    async with dial(address, plane=Plane.CLIENT) as channel:
        try:
            request = settings_pb2.ApplyRequest(text=text, author="me", **fields)  # type: ignore[arg-type]
            stub = settings_pb2_grpc.SettingsStub(channel)
            reply = await stub.Apply(request, timeout=BOUND_S)
        except grpc_aio.AioRpcError as error:
            raise error_from(error) from None
        cluster = cluster_pb2_grpc.ClusterStub(channel)
        in_force = -1
        while in_force != reply.version:
            status = await cluster.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
            in_force = status.settings_version
        return reply.version


async def test_a_quota_is_refused_with_a_hint_and_others_go_on(stage: OpenStage) -> None:
    on = await stage("pd")
    await apply(on, "[tenants.t]\ntokens_per_s = 0.1\nburst_tokens = 20")
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=10, tenant="t")
    with pytest.raises(Saturated) as refused:
        await on.client.complete(token_ids=[5, 6, 7], max_tokens=10, tenant="t")
    assert refused.value.retry_after_s > 1
    assert "tenant t" in str(refused.value)
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=10, tenant="u")
    # What the answer did not need was given back.
    await apply(on, "[tenants.t]\ntokens_per_s = 0.1\nburst_tokens = 2000")


async def test_what_an_answer_may_need_is_taken_and_the_rest_comes_back(stage: OpenStage) -> None:
    on = await stage("pd")
    await apply(on, "[tenants.t]\ntokens_per_s = 0.001\nburst_tokens = 1000")
    (first,) = await on.client.complete(token_ids=[5, 6, 7], max_tokens=900, stop=["w"], tenant="t")
    assert len(first.token_ids) < 5
    # All but a few of the 903 are there again.
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=900, stop=["w"], tenant="t")
    with pytest.raises(Saturated):
        await on.client.complete(token_ids=[5, 6, 7], max_tokens=996, tenant="t")


async def test_a_priority_above_the_tenants_is_refused(stage: OpenStage) -> None:
    on = await stage("pd")
    await apply(on, "[tenants.t]\nmax_priority = 1")
    await on.client.complete(token_ids=[5], max_tokens=1, tenant="t", priority=1)
    with pytest.raises(InvalidRequest, match="at most 1"):
        await on.client.complete(token_ids=[5], max_tokens=1, tenant="t", priority=2)


async def test_rollback_dry_run_and_conflict(stage: OpenStage) -> None:
    on = await stage("pd")
    assert await apply(on, '[policy]\nname = "jsq"') == 1
    assert await apply(on, '[policy]\nname = "random"') == 2
    assert await apply(on, restores=1) == 3
    assert await apply(on, "[limits]", dry_run=True) == 3
    with pytest.raises(InvalidRequest, match=r"policy\.name"):
        await apply(on, '[policy]\nname = "best"')
    with pytest.raises(Exception, match="version 3 is in the store"):
        await apply(on, "[limits]", expected_version=2)
    with pytest.raises(Exception, match="version 9"):
        await apply(on, restores=9)
    editions = await on.registry.editions()
    assert [(e.version, e.restores, e.author) for e in editions] == [
        (1, 0, "me"),
        (2, 0, "me"),
        (3, 1, "me"),
    ]


def test_a_quota_is_told_apart_from_a_full_queue() -> None:
    assert QuotaExceeded("x").reason == "QUOTA_EXCEEDED"
