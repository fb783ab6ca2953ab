"""A server's life: bound, not ready, serving, draining, gone; and links that die quietly."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from core.errors import PeerLost, Saturated
from core.limits import MAX_CLIENT_MESSAGE_BYTES
from rpc.dial import BadAddress, ChannelPool, dial
from rpc.options import Plane
from rpc.serve import BindFailed, Life, Server, bind, build, serve
from rpc.status import error_from
from tests.rpc.support import Context, add, call, serving, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    status: int = answer.status
    return status


async def watch(channel: grpc.aio.Channel, seen: "asyncio.Queue[int]") -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            seen.put_nowait(answer.status)
    except grpc.aio.AioRpcError:
        pass


class Running:
    """A server under `serve`, and what the test may turn."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.address = f"127.0.0.1:{port}"
        self.drained = asyncio.Event()
        self.life = Life(
            ready=asyncio.Event(), stop=asyncio.Event(), drain=self._drain, drain_s=10.0
        )
        self.log: list[str] = []

    async def _drain(self) -> None:
        self.log.append("drain")
        await self.drained.wait()

    async def loop(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append("loop ended")


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Running, "asyncio.Future[None]", grpc.aio.Channel]]:
    server = await build(Plane.WORKER, ("baton.v1.KvTransfer",))

    async def method(request: bytes, _: Context) -> bytes:
        return request

    add(server, method)
    run = Running(server, bind(server, "127.0.0.1:0"))
    task = asyncio.ensure_future(serve(server, [run.loop], run.life))
    try:
        async with dial(run.address) as channel, asyncio.timeout(20):
            yield run, task, channel
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_health_follows_the_life() -> None:
    async with running() as (run, task, channel):
        seen: asyncio.Queue[int] = asyncio.Queue()
        watching = asyncio.ensure_future(watch(channel, seen))
        assert await seen.get() == NOT_SERVING
        run.life.ready.set()
        assert await seen.get() == SERVING
        assert await health_of(channel, "baton.v1.KvTransfer") == SERVING
        run.life.stop.set()
        assert await seen.get() == NOT_SERVING
        # Draining: known not to serve, and calls in flight still answered.
        assert await call(channel, b"still here") == b"still here"
        assert run.log == ["drain"]
        run.drained.set()
        # A watch never ends by itself and must not hold the stop.
        await task
        await watching
        assert run.log == ["drain", "loop ended"]


async def test_a_drain_is_broken_off() -> None:
    server = await build(Plane.WORKER, ())
    run = Running(server, bind(server, "127.0.0.1:0"))
    life = Life(ready=run.life.ready, stop=run.life.stop, drain=run.life.drain, drain_s=0.01)
    life.stop.set()
    async with asyncio.timeout(10):
        await serve(server, [run.loop], life)
    assert run.log == ["drain", "loop ended"]


async def test_a_failing_loop_ends_the_server() -> None:
    server = await build(Plane.WORKER, ())
    run = Running(server, bind(server, "127.0.0.1:0"))

    async def fail() -> None:
        raise OSError("step loop died")

    with pytest.RaisesGroup(OSError):
        await serve(server, [run.loop, fail], run.life)
    async with dial(run.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel)
    assert isinstance(error_from(caught.value), PeerLost)


async def test_reflection_names_our_services() -> None:
    async with running() as (_, _, channel):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = stub.ServerReflectionInfo(iter([ask]))
        answer = await stream.read()
        names = {service.name for service in answer.list_services_response.service}
        assert "baton.v1.KvTransfer" in names
        stream.cancel()


async def test_a_port_is_taken_once() -> None:
    first, second = await build(Plane.WORKER, ()), await build(Plane.WORKER, ())
    port = bind(first, "127.0.0.1:0")
    with pytest.raises(BindFailed):
        bind(second, f"127.0.0.1:{port}")
    with pytest.raises(BindFailed):
        bind(second, "192.0.2.1:0")  # of nobody: a documentation address
    for server in (first, second):
        await server.grpc.stop(grace=None)


@pytest.mark.parametrize(
    "address", ["", "localhost", "unix:/tmp/s", "127.0.0.1:0", "h:65536", "dns:///h:1", "a b:1"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(BadAddress):
        dial(address)


async def test_large_messages_are_refused_by_the_plane() -> None:
    async def method(_: bytes, __: Context) -> bytes:
        return b""

    async with serving(method) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, bytes(MAX_CLIENT_MESSAGE_BYTES + 1))
    assert isinstance(error_from(caught.value), Saturated)


async def test_pooled_channels_are_connections_of_their_own() -> None:
    peers: set[str] = set()

    async def method(_: bytes, context: Context) -> bytes:
        peers.add(context.peer())
        return b""

    server = await build(Plane.WORKER, ())
    add(server, method)
    address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
    await server.grpc.start()
    pool = ChannelPool(3)
    for _ in range(6):
        await call(pool.get(address))
    assert len(peers) == 3
    await pool.forget(address)
    await call(pool.get(address))
    assert len(peers) == 4
    await pool.close()
    await server.grpc.stop(grace=None)


class Blackhole:
    """A link that can go silent without closing."""

    def __init__(self, target: str) -> None:
        self._host, port = target.split(":")
        self._port = int(port)
        self.silent = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, forth))
                group.create_task(self._pass(back, writer))
        finally:
            forth.close()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(data)
        writer.close()


async def test_a_link_gone_silent_is_noticed_within_three_seconds() -> None:
    started = ended = 0

    async def method(_: bytes, __: Context) -> bytes:
        nonlocal started, ended
        started += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        return b""

    server = await build(Plane.WORKER, ())
    add(server, method)
    address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
    await server.grpc.start()
    hole = Blackhole(address)
    proxy = await asyncio.start_server(hole, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with dial(f"127.0.0.1:{port}") as channel, dial(address) as healthy:
        waiting = asyncio.ensure_future(call(healthy, timeout_s=60))
        calling = asyncio.ensure_future(call(channel, timeout_s=60))
        await until(lambda: started == 2)
        hole.silent = True
        silent_at_s = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calling
        noticed_s = time.monotonic() - silent_at_s
        assert isinstance(error_from(caught.value), PeerLost)
        # 1 s between pings and 2 s of patience, and what a busy machine adds.
        assert noticed_s < 4.0
        # The server's own pings notice it too, and end the call there.
        await until(lambda: ended == 1)
        # A link that only had nothing to say is not taken for dead.
        assert not waiting.done()
        waiting.cancel()
    await server.grpc.stop(grace=None)
    proxy.close()
    await proxy.wait_closed()
