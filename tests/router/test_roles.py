"""An instance's new role, as its router sees it; and which controllers a router obeys."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from core.errors import BatonError, InvalidRequest, StaleTerm, Unsupported
from core.member import Role
from rpc.convert_report import role_from_pb
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, types_pb2
from rpc.status import error_from
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected
from tests.router.script import BOUND_S, Gate

PROMPT = [5, 6, 7]


async def ask(on: Stage, num_tokens: int = 3) -> list[int]:
    (answer,) = await on.client.complete(token_ids=PROMPT, max_tokens=num_tokens, seed=0)
    return list(answer.token_ids)


async def give_roles(on: Stage, **roles: Role) -> None:
    """Announce them, and wait until the router knows."""
    for name, role in roles.items():
        on[name].role = role
        await on.join(on[name])
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub, known = cluster_pb2_grpc.ClusterStub(channel), dict[str, Role]()
        async with asyncio.timeout(BOUND_S):
            while known != {name: peer.role for name, peer in on.peers.items()}:
                reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
                known = {each.instance_id: role_from_pb(each.role) for each in reply.instances}


async def test_placement_follows_a_role_that_changes(stage: OpenStage) -> None:
    on = await stage("pd")
    for role, other in ((Role.DECODE, Role.PREFILL), (Role.PREFILL, Role.DECODE)) * 2:
        await give_roles(on, p0=role, d0=other)
        for peer in on.peers.values():
            peer.prefills.clear()
            peer.decodes.clear()
        for _ in range(4):
            assert await ask(on) == expected(PROMPT, 3)
        counts = {peer.role: (len(peer.prefills), len(peer.decodes)) for peer in on.peers.values()}
        assert counts == {Role.PREFILL: (4, 0), Role.DECODE: (0, 4)}


async def test_what_runs_stays_where_it_is(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["d0"].script.token_gates.setdefault(2, Gate())
    running = asyncio.ensure_future(ask(on, 6))
    await gate.wait_reached()
    await give_roles(on, p0=Role.DECODE, d0=Role.PREFILL)
    assert await ask(on) == expected(PROMPT, 3)
    assert [len(on[name].decodes) for name in ("p0", "d0")] == [1, 1]
    gate.open.set()
    assert await running == expected(PROMPT, 6)
    # Each was placed once: neither anew, nor elsewhere.
    for name in ("p0", "d0"):
        peer = on[name]
        assert (len(peer.prefills), len(peer.decodes), len(peer.subscriptions)) == (1, 1, 1)
        assert not peer.retargets


# --- what a router is asked -------------------------------------------------------------------


async def refusal(call: "grpc.aio.UnaryUnaryCall[Any, Any]") -> BatonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from(caught.value)


async def test_a_router_keeps_its_role_and_hears_the_newest_controller(stage: OpenStage) -> None:
    on = await stage("pd")
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        change = cluster_pb2.ChangeRoleRequest(role=types_pb2.ROLE_MIXED, term=9)
        assert isinstance(await refusal(stub.ChangeRole(change)), Unsupported)
        # What is refused for another reason was not heard: only the last one is.
        nonsense = cluster_pb2.DrainRequest(timeout_s=-1.0, term=8)
        assert isinstance(await refusal(stub.Drain(nonsense)), InvalidRequest)
        await stub.Drain(cluster_pb2.DrainRequest(timeout_s=BOUND_S, term=7), timeout=BOUND_S)
    async with asyncio.timeout(BOUND_S):
        await on.routers[0].task


async def test_an_outdated_controller_drains_no_router(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["d0"].script.token_gates.setdefault(2, Gate())
    running = asyncio.ensure_future(ask(on, 6))
    await gate.wait_reached()
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        # The drain lasts as long as the answer does: so it still serves when the late one asks.
        await stub.Drain(cluster_pb2.DrainRequest(timeout_s=BOUND_S, term=7), timeout=BOUND_S)
        late = cluster_pb2.DrainRequest(timeout_s=0.0, term=6)
        error = await refusal(stub.Drain(late))
    assert isinstance(error, StaleTerm)
    assert str(error) == "term 6 is behind 7: a newer controller has asked here"
    gate.open.set()
    assert await running == expected(PROMPT, 6)
