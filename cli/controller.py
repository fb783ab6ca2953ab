"""The controller of a cluster: where it is, what it is asked, and who else is there now.

Imported only by commands that are called: the base installation has neither gRPC nor redis.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from cli.asking import ask_cluster
from cli.pictures import SERVING
from cli.running import find_http, find_registry, find_routers
from core.errors import (
    BatonError,
    Cancelled,
    DeadlinePassed,
    PeerLost,
    StaleFence,
    StaleTerm,
    WrongState,
)
from core.member import Role
from registry.api import Registry, RegistryUnavailable
from registry.connect import connect
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, controller_pb2, controller_pb2_grpc, types_pb2
from rpc.status import error_from

ANSWER_S = 10.0
"""It answers from memory, but shares its processor with starting instances."""
Find = Callable[[], Awaitable[str]]
"""Where the controller is now; raises BatonError."""


class NoController(BatonError):
    """Nobody leads the cluster at the moment."""

    status = "UNAVAILABLE"
    retryable = True


class ControllerSilent(BatonError):
    """Its address is known and nothing is heard from it."""

    status = "UNAVAILABLE"
    retryable = True


async def controller_of(name: str | None = None) -> str:
    """host:port of the controller that leads. Raises NoCluster, NoController, and whatever the
    registry does."""
    async with _registry(name) as (registry, cluster):
        leader = await registry.leader()
    if leader is None:
        raise NoController(
            f"nobody leads cluster {cluster}: the controller is being restarted: try again"
        )
    return str(leader.address)


async def ask_controller(
    address: str, method: str, request: Message, *, timeout_s: float = ANSWER_S
) -> Any:  # noqa: ANN401 - by method
    """The reply of one call. Raises BatonError."""
    async with dial(address, plane=Plane.CLIENT) as channel:
        call = getattr(controller_pb2_grpc.ControllerStub(channel), method)
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise unheard(address, error_from(error)) from None


async def state_now(address: str) -> controller_pb2.ClusterState:
    """The cluster as the controller sees it this moment. Raises BatonError."""
    async with dial(address, plane=Plane.CLIENT) as channel:
        stub = controller_pb2_grpc.ControllerStub(channel)
        watch = stub.Watch(controller_pb2.WatchRequest(), timeout=ANSWER_S)
        try:
            async for state in watch:
                watch.cancel()
                return state
        except grpc.aio.AioRpcError as error:
            raise silent(address, error_from(error)) from None
    raise ControllerSilent(f"the controller at {address} ended the call: try again")


def unheard(address: str, error: BatonError) -> BatonError:
    """What gRPC says of a call that came to nothing, in words about the controller; any other
    error as it is."""
    if isinstance(error, PeerLost | DeadlinePassed | Cancelled):
        return ControllerSilent(
            f"the controller at {address} does not answer ({error}): it may be starting anew: try"
            " again, and see `baton status`"
        )
    return error


def silent(address: str, error: BatonError) -> BatonError:
    """The same of watching; who has lost the lead is not worth watching either."""
    if isinstance(error, StaleFence | StaleTerm | WrongState):
        return ControllerSilent(f"the controller at {address} leads no longer ({error})")
    return unheard(address, error)


def serving_routers(state: controller_pb2.ClusterState) -> tuple[str, ...]:
    """host:port of gRPC of each that takes requests."""
    return tuple(
        member.address
        for member in state.members
        if member.role == types_pb2.ROLE_ROUTER and member.state == SERVING and member.address
    )


async def living_routers(name: str | None = None) -> tuple[str, ...]:
    """gRPC, of a cluster that has a registry: those that live now; never none."""
    living: tuple[str, ...] = ()
    # Without its registry a cluster serves on, and so do the routers of its note.
    with suppress(RegistryUnavailable):
        async with _registry(name) as (registry, _):
            members = await registry.members()
        living = tuple(m.leader_address for m in members if m.role is Role.ROUTER)
    return living or find_routers(None, name)


async def living_http(name: str | None = None) -> tuple[str, ...]:
    """The same, of OpenAI's API: each router says where its own is."""
    found = []
    for router in await living_routers(name):
        with suppress(BatonError):  # on its way out; the next one is asked
            reply = await ask_cluster(router, "Status", cluster_pb2.StatusRequest())
            found += [reply.http_address] if reply.http_address else []
    return tuple(found) or find_http(None, name)


@asynccontextmanager
async def _registry(name: str | None) -> AsyncIterator[tuple[Registry, str]]:
    url, cluster = find_registry(name)
    registry = connect(url, cluster)
    try:
        yield registry, cluster
    finally:
        await registry.close()
