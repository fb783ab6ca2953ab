"""A controller and a router in one server, which say what a test tells them to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from core.errors import BatonError, UnknownRequest
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, controller_pb2, controller_pb2_grpc, types_pb2
from rpc.pb.controller_pb2 import ClusterEvent, ClusterState, MemberState, OnlineState
from rpc.serve import bind, build
from rpc.status import abort, status_boundary

PLAN = "[prefill]\nreplicas = 1\n[decode]\nreplicas = 1\n"
Context = grpc.aio.ServicerContext[Any, Any]
ROLES = {
    "prefill": types_pb2.ROLE_PREFILL,
    "decode": types_pb2.ROLE_DECODE,
    "router": types_pb2.ROLE_ROUTER,
}


@dataclass
class Script:
    """What is said, and what was asked."""

    watches: list[list[ClusterState | BatonError]] = field(default_factory=list)
    """One for each call of Watch, the last one again and again; then the call stays open."""
    replan: controller_pb2.ReplanReply = field(default_factory=controller_pb2.ReplanReply)
    logs: dict[str, bytes] = field(default_factory=dict)
    status: cluster_pb2.StatusReply | BatonError = field(default_factory=cluster_pb2.StatusReply)
    asked: list[Any] = field(default_factory=list)
    ends_watches: bool = False
    """Each Watch ends after what it had to say."""
    on_drain: Callable[[str], None] = lambda _: None


class FakeController(controller_pb2_grpc.ControllerServicer):
    """By a script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Watch(
        self, request: controller_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[ClusterState]:
        """The next of the script's, piece by piece."""
        watches = self._script.watches
        for each in watches.pop(0) if len(watches) > 1 else list(watches[0]):
            if isinstance(each, BatonError):
                await abort(context, each)
            yield each
        if not self._script.ends_watches:
            await asyncio.Event().wait()

    async def DrainMember(
        self, request: controller_pb2.DrainMemberRequest, context: Context
    ) -> controller_pb2.DrainMemberReply:
        """Noted."""
        self._script.asked.append(request)
        self._script.on_drain(request.name)
        return controller_pb2.DrainMemberReply()

    async def Replan(
        self, request: controller_pb2.ReplanRequest, context: Context
    ) -> controller_pb2.ReplanReply:
        """As scripted."""
        self._script.asked.append(request)
        return self._script.replan

    async def Logs(
        self, request: controller_pb2.LogsRequest, context: Context
    ) -> controller_pb2.LogsReply:
        """By bytes, as the contract says."""
        async with status_boundary(context):
            self._script.asked.append(request)
            if request.name not in self._script.logs:
                raise UnknownRequest(f"no log of {request.name}")
            whole = self._script.logs[request.name]
            size, offset = len(whole), request.offset
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            piece = whole[start : start + (request.max_bytes or 64 * 1024)]
            return controller_pb2.LogsReply(
                text=piece.decode(errors="replace"), next_offset=start + len(piece)
            )
        raise AssertionError("status_boundary ends the call")


class FakeRouter(cluster_pb2_grpc.ClusterServicer):
    """By a script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Status(
        self, request: cluster_pb2.StatusRequest, context: Context
    ) -> cluster_pb2.StatusReply:
        """As scripted."""
        async with status_boundary(context):
            if isinstance(self._script.status, BatonError):
                raise self._script.status
            return self._script.status
        raise AssertionError("status_boundary ends the call")


@asynccontextmanager
async def serving(script: Script, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Both, on the loop that runs; host:port."""
    server = await build(Plane.CLIENT, ())
    # Calls that no test makes are left out.
    controller = FakeController(script)  # type: ignore[abstract]
    router = FakeRouter(script)  # type: ignore[abstract]
    controller_pb2_grpc.add_ControllerServicer_to_server(controller, server.grpc)
    cluster_pb2_grpc.add_ClusterServicer_to_server(router, server.grpc)
    port = bind(server, address)
    await server.grpc.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.grpc.stop(grace=None)


async def serve(script: Script, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """For a thread of its own: the command line runs a loop of its own too."""
    async with serving(script) as address:
        ready(address)
        await stop.wait()


def member(name: str, state: str = "serving", role: str = "", **given: Any) -> MemberState:
    """The role is in its name unless it is said."""
    words = role or next(r for r in ROLES if name.startswith(r))
    defaults = {"host": "10.0.0.1", "in_state_s": 75.0, "actor_id": f"actor-of-{name}"}
    return MemberState(name=name, role=ROLES[words], state=state, **{**defaults, **given})


def cluster_state(members: Sequence[MemberState], **given: Any) -> ClusterState:
    """Settled, unless something is waited for."""
    defaults: dict[str, Any] = {
        "cluster": "one",
        "term": 7,
        "edition": 3,
        "plan_toml": PLAN,
        "settled": not given.get("waits_for"),
    }
    return ClusterState(members=members, **{**defaults, **given})


def event(num: int, who: str = "") -> ClusterEvent:
    """One a minute after noon."""
    return ClusterEvent(at_unix_s=43_200.0 + 60 * num, member=who, text=f"event {num} [bold]")


def online() -> OnlineState:
    """Something was seen."""
    return OnlineState(
        rate_per_s=4.25,
        mean_prompt_tokens=512,
        mean_output_tokens=128,
        attainment=0.97,
        num_requests=300,
        decision="stays: nothing shifted",
    )


def instance_status(
    name: str, *, num_queried_tokens: int = 0, num_steps: int = 0, connected: bool = True
) -> cluster_pb2.InstanceStatus:
    """Busy a little."""
    return cluster_pb2.InstanceStatus(
        instance_id=name,
        role=ROLES[next(r for r in ROLES if name.startswith(r))],
        addresses=["10.0.0.1:31001"],
        load=types_pb2.LoadReport(
            num_prefilling=2,
            num_decoding=3,
            num_incoming=1,
            num_blocks=100,
            num_free_blocks=60,
            num_queried_tokens=num_queried_tokens,
        ),
        integrity=cluster_pb2.Integrity(num_steps=num_steps),
        connected=connected,
    )
