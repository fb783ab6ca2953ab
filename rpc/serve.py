"""Runs a gRPC server from bind to drain, with health and reflection."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc.aio
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from core.errors import BatonError
from rpc.options import Plane, server_options

Loop: TypeAlias = Callable[[], Awaitable[None]]

GOODBYE_S = 0.5
"""After the drain: for last messages on their way and for streams that never end by themselves
(health watches, subscriptions)."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class BindFailed(BatonError):
    """The address cannot be listened on."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True)
class Server:
    """A gRPC server with its health service, not started yet; servicers are added to `grpc`."""

    grpc: grpc.aio.Server
    health: health.aio.HealthServicer
    service_names: tuple[str, ...]
    """Full names of our own services."""

    async def report(self, serving: bool) -> None:
        """Tell health checks, of the whole server and of each service."""
        status = _SERVING if serving else _NOT_SERVING
        for name in ("", *self.service_names):
            await self.health.set(name, status)


async def build(plane: Plane, service_names: Sequence[str]) -> Server:
    """A server with health (NOT_SERVING) and reflection; `service_names` are our own services."""
    grpc_server = grpc.aio.server(options=list(server_options(plane).items()))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
    reflection.enable_server_reflection(
        (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server
    )
    server = Server(grpc_server, servicer, tuple(service_names))
    await server.report(serving=False)
    return server


def bind(server: Server, address: str) -> int:
    """Listen on host:port once started; port 0 takes a free one. Returns the port."""
    try:
        port = server.grpc.add_insecure_port(address)
    except RuntimeError as error:
        raise BindFailed(f"cannot listen on {address}: in use, or not of this host") from error
    if port == 0:
        raise BindFailed(f"cannot listen on {address}")
    return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """When a server serves and how it stops."""

    ready: asyncio.Event
    """Set when calls can be answered: health says SERVING from then on."""
    stop: asyncio.Event
    drain: Callable[[], Awaitable[None]]
    """Called once at the stop: refuses new work, returns when the old has ended."""
    drain_s: float
    """The drain is broken off after that long."""


async def serve(server: Server, loops: Sequence[Loop], life: Life) -> None:
    """Serve until `life.stop` is set; then drain, then end the calls that are left.

    A loop that raises ends the process with its own traceback: a worker that has lost its step
    loop must not keep answering health checks.
    """
    await server.grpc.start()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(loop)) for loop in loops]
            tasks.append(group.create_task(_report_when_ready(server, life)))
            await life.stop.wait()
            # First of all, so that nobody sends new work to a server about to refuse it.
            await server.report(serving=False)
            await _drain(life)
            # Calls in flight still need the loops.
            await server.grpc.stop(grace=GOODBYE_S)
            for task in tasks:
                task.cancel()
    finally:
        await server.grpc.stop(grace=None)


async def _run(loop: Loop) -> None:
    await loop()


async def _report_when_ready(server: Server, life: Life) -> None:
    await life.ready.wait()
    if not life.stop.is_set():
        await server.report(serving=True)


async def _drain(life: Life) -> None:
    try:
        async with asyncio.timeout(life.drain_s):
            await life.drain()
    except TimeoutError:
        pass  # what is left gets UNAVAILABLE below, and its router places it anew
