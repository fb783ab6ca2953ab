"""A server with methods of the test's own making, and a channel to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from rpc.dial import dial
from rpc.options import Plane
from rpc.serve import Server, bind, build

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Method: TypeAlias = Callable[[bytes, Any], Awaitable[bytes]]
UNARY = "/test.Service/Unary"


def add(server: Server, method: Method) -> None:
    """Serve `method` as UNARY, bytes to bytes."""
    handler: Any = grpc.unary_unary_rpc_method_handler(method)
    generic = grpc.method_handlers_generic_handler("test.Service", {"Unary": handler})
    server.grpc.add_generic_rpc_handlers((generic,))


@asynccontextmanager
async def serving(method: Method) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of one method."""
    server = await build(Plane.CLIENT, ())
    add(server, method)
    port = bind(server, "127.0.0.1:0")
    await server.grpc.start()
    try:
        async with dial(f"127.0.0.1:{port}", plane=Plane.CLIENT) as channel:
            yield channel
    finally:
        await server.grpc.stop(grace=None)


async def call(channel: grpc.aio.Channel, request: bytes = b"", timeout_s: float = 10.0) -> bytes:
    """One call of UNARY."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    return await method(request, timeout=timeout_s)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of other people's making
            await asyncio.sleep(0.001)
