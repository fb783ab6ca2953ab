"""A server with methods of the test's own making, and a channel to it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from rpc.dial import dial
from rpc.options import Plane
from rpc.serve import Server, bind, build

Method = Callable[[bytes, Any], Awaitable[bytes]]
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
    answer: bytes = await channel.unary_unary(UNARY)(request, timeout=timeout_s)
    return answer
