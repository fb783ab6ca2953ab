"""Asking a controller: found through the registry, and every way to fail has its type."""

import asyncio

import pytest

from cli import running
from cli.controller import (
    ControllerSilent,
    NoController,
    ask_controller,
    controller_of,
    living_http,
    living_routers,
    serving_routers,
    silent,
    state_now,
)
from cli.running import ClusterNote, NoCluster
from core.errors import (
    BatonError,
    Cancelled,
    DeadlinePassed,
    Draining,
    PeerLost,
    StaleTerm,
    Unsupported,
    WrongState,
)
from core.ids import Fingerprint, InstanceId
from core.member import Member, Role
from registry.api import RegistryUnavailable
from registry.memory import MemoryRegistry, MemoryStore
from rpc.pb import cluster_pb2
from rpc.pb.controller_pb2 import DrainMemberReply, DrainMemberRequest
from tests.cli.conftest import FakeCluster, note_up
from tests.cli.fake_cluster import Script, cluster_state, member, serving


async def lead(store: MemoryStore, address: str) -> None:
    await MemoryRegistry(store).lead("controller-a", address, term=None, ttl_s=60.0)


async def test_the_leader_is_found(store: MemoryStore) -> None:
    note_up("one", "127.0.0.1:1")
    await lead(store, "127.0.0.1:7")
    assert await controller_of() == await controller_of("one") == "127.0.0.1:7"


async def test_nobody_leads(store: MemoryStore) -> None:
    note_up("one", "127.0.0.1:1")
    with pytest.raises(NoController, match="try again") as caught:
        await controller_of()
    assert caught.value.retryable


async def test_a_served_cluster_has_no_controller(store: MemoryStore) -> None:
    running.write_note(ClusterNote(name="one", routers=("127.0.0.1:1",), http=()))
    with pytest.raises(NoCluster, match="`baton serve`"):
        await controller_of()


async def test_the_store_is_away(store: MemoryStore) -> None:
    note_up("one", "127.0.0.1:1")
    store.set_reachable(False)
    with pytest.raises(RegistryUnavailable):
        await controller_of()


async def test_every_handle_is_closed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    note_up("one", "127.0.0.1:1")
    registry = MemoryRegistry(store)
    monkeypatch.setattr("cli.controller.connect", lambda url, cluster: registry)
    with pytest.raises(NoController):
        await controller_of()
    with pytest.raises(RegistryUnavailable, match="closed"):
        await registry.leader()


async def test_it_is_asked() -> None:
    script = Script()
    async with serving(script) as address:
        reply = await ask_controller(address, "DrainMember", DrainMemberRequest(name="prefill-a"))
    assert reply == DrainMemberReply()
    assert [request.name for request in script.asked] == ["prefill-a"]


async def test_its_errors_are_ours() -> None:
    script = Script(watches=[[Draining("it ends")]])
    async with serving(script) as address:
        with pytest.raises(Draining, match="it ends"):
            await state_now(address)


async def test_a_dead_one_is_silent() -> None:
    async with serving(Script()) as address:
        pass
    with pytest.raises(ControllerSilent, match="try again"):
        await ask_controller(address, "DrainMember", DrainMemberRequest(name="prefill-a"))


async def test_one_state_is_enough() -> None:
    first, second = cluster_state([]), cluster_state([member("prefill-a")])
    async with serving(Script(watches=[[first, second]])) as address:
        assert await state_now(address) == first


async def test_a_call_that_ends_at_once_is_an_error() -> None:
    async with serving(Script(watches=[[]], ends_watches=True)) as address:
        with pytest.raises(ControllerSilent, match="try again"):
            await state_now(address)


MENDED = [
    # what it says, whether another try may help
    (DeadlinePassed("late"), True),
    (Cancelled("server is stopped"), True),
    (StaleTerm("another leads"), True),
    (WrongState("not leading"), True),
    (PeerLost("gone"), True),
    (Unsupported("older"), False),
]


@pytest.mark.parametrize(("error", "is_mended"), MENDED, ids=[e.reason for e, _ in MENDED])
def test_what_another_try_mends(error: BatonError, is_mended: bool) -> None:
    found = silent("127.0.0.1:1", error)
    assert found.retryable == is_mended
    assert isinstance(found, ControllerSilent) or found is error


ROUTERS = [
    ("serves", member("router-0", address="h:1"), ("h:1",)),
    ("starts", member("router-0", "starting"), ()),
    ("drains", member("router-0", "draining", address="h:1"), ()),
    ("is an instance", member("prefill-a", address="h:1"), ()),
]


@pytest.mark.parametrize(("who", "want"), [c[1:] for c in ROUTERS], ids=[c[0] for c in ROUTERS])
def test_serving_routers(who: object, want: tuple[str, ...]) -> None:
    assert serving_routers(cluster_state([who])) == want  # type: ignore[list-item]


def router(name: str, address: str) -> Member:
    return Member(
        instance_id=InstanceId(name),
        role=Role.ROUTER,
        addresses=(address,),
        fingerprint=Fingerprint(""),
        model="",
        incarnation="a",
        host_id="h",
        protocol_version=1,
        block_size=0,
        max_context_tokens=0,
        num_blocks=0,
    )


async def test_routers_that_live_now_go_over_those_of_the_note(store: MemoryStore) -> None:
    note_up("one", "127.0.0.1:1")
    assert await living_routers() == ("127.0.0.1:1",), "the registry knows none"
    await MemoryRegistry(store).announce(router("router-0", "127.0.0.1:2"), ttl_s=60.0)
    assert await living_routers() == await running.routers_now(None) == ("127.0.0.1:2",)
    store.set_reachable(False)
    assert await living_routers() == ("127.0.0.1:1",)


async def test_living_routers_say_where_their_api_is(store: MemoryStore) -> None:
    note_up("one", "127.0.0.1:1")
    script = Script(status=cluster_pb2.StatusReply(http_address="127.0.0.1:8000"))
    async with serving(script) as address:
        registry = MemoryRegistry(store)
        await registry.announce(router("router-0", address), ttl_s=60.0)
        await registry.announce(router("router-1", "127.0.0.1:1"), ttl_s=60.0)
        assert await living_http() == await running.http_now(None) == ("127.0.0.1:8000",)


def test_the_fixture_is_found(cluster: FakeCluster) -> None:
    assert asyncio.run(controller_of()) == cluster.address
