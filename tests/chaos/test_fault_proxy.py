"""The proxy does to bytes what it is told, and to nothing else."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.fault_proxy import CHUNK_BYTES, MAX_CHUNKS, FaultProxy, Sleep, Stop, fault_proxy

DATA = bytes(range(256)) * 40
WAIT_S = 20.0


class End:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes, *, last: bool = True) -> None:
        self.writer.write(data)
        if last:
            self.writer.write_eof()
        await self.writer.drain()

    async def hear(self, num_bytes: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readexactly(num_bytes)

    async def hear_all(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()


class Server:
    """Keeps what comes, and lets the test speak for it."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.arrived: asyncio.Queue[End] = asyncio.Queue()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append(End(reader, writer))
        self.arrived.put_nowait(self.ends[-1])


@asynccontextmanager
async def connection(sleep: Sleep = asyncio.sleep) -> AsyncIterator[tuple[FaultProxy, End, End]]:
    """A proxy, a client and the server's end of its connection."""
    server = Server()
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    try:
        async with asyncio.timeout(WAIT_S), fault_proxy(f"{host}:{port}", sleep) as proxy:
            client = await dialled(proxy.address)
            server.ends.append(client)
            yield proxy, client, await server.arrived.get()
    finally:
        listening.close()
        for end in server.ends:
            end.writer.transport.abort()
        # The transports end at the loop's next turn.
        await asyncio.sleep(0)


async def dialled(address: str) -> End:
    host, _, port = address.rpartition(":")
    return End(*await asyncio.open_connection(host, int(port)))


@settings(max_examples=20, deadline=None)
@given(up=st.binary(max_size=20_000), down=st.binary(max_size=20_000))
def test_without_faults_both_directions_pass_whole(up: bytes, down: bytes) -> None:
    async def main() -> None:
        async with connection() as (proxy, client, server):
            await client.say(up)
            assert await server.hear_all() == up
            await server.say(down)
            assert await client.hear_all() == down
            assert proxy.up.num_written_bytes == len(up)
            assert proxy.down.num_written_bytes == len(down)

    asyncio.run(main())


FLIPPED = DATA[:5000] + bytes([DATA[5000] ^ 1]) + DATA[5001:]
CHANGES = [
    # id                 faults                                   want
    ("one bit", {"flip_at": 5000}, FLIPPED),
    ("a bit beyond the end", {"flip_at": len(DATA)}, DATA),
    ("every byte", {"flip_share": 1.0}, bytes(byte ^ 1 for byte in DATA)),
    ("closed early", {"stops": {Stop.TRUNCATE: 4097}}, DATA[:4097]),
    ("closed at once", {"stops": {Stop.TRUNCATE: 0}}, b""),
    ("the earlier of two", {"stops": {Stop.RESET: 9000, Stop.TRUNCATE: 10}}, DATA[:10]),
]


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("faults", "want"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
async def test_what_becomes_of_bytes(
    faults: dict[str, object], want: bytes, direction: str
) -> None:
    async with connection() as (proxy, client, server):
        getattr(proxy, direction).change(**faults)
        speaker, listener = (client, server) if direction == "up" else (server, client)
        await speaker.say(DATA)
        assert await listener.hear_all() == want


async def test_a_chunk_twice() -> None:
    async with connection() as (proxy, client, server):
        proxy.up.change(duplicate_at=0)
        await client.say(DATA)
        heard = await server.hear_all()
        num_again = len(heard) - len(DATA)
        assert 0 < num_again <= CHUNK_BYTES
        assert heard == DATA[:num_again] + DATA


async def test_random_flips_are_those_of_the_seed() -> None:
    heard = set()
    for _ in range(2):
        async with connection() as (proxy, client, server):
            proxy.up.change(flip_share=0.01)
            await client.say(DATA)
            heard.add(await server.hear_all())
    assert len(heard) == 1
    assert DATA not in heard


async def test_a_reset_after_some_bytes_reaches_both() -> None:
    async with connection() as (proxy, client, server):
        proxy.up.change(stops={Stop.RESET: 100})
        await client.say(DATA, last=False)
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                await end.hear_all()


async def test_a_reset_now_leaves_new_connections_alone() -> None:
    async with connection() as (proxy, client, server):
        await client.say(b"before", last=False)
        assert await server.hear(6) == b"before"
        proxy.reset()
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                await end.hear_all()
        again = await dialled(proxy.address)
        await again.say(b"after")
        while proxy.up.num_written_bytes < len(b"before" + b"after"):  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0)
        again.writer.transport.abort()


async def test_an_end_that_vanishes_is_a_reset_for_the_other() -> None:
    async with connection() as (_, client, server):
        await client.say(b"x", last=False)
        assert await server.hear(1) == b"x"
        linger = struct.pack("ii", 1, 0)
        kernel = client.writer.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await server.hear_all()


async def test_nobody_listens() -> None:
    async with connection() as (_, _, server):
        host, port = server.writer.get_extra_info("sockname")
        server.writer.transport.abort()
    async with fault_proxy(f"{host}:{port}") as proxy:
        end = await dialled(proxy.address)
        with pytest.raises(ConnectionResetError):
            await end.hear_all()
        end.writer.transport.abort()


@pytest.mark.parametrize("num_turns", range(6))
async def test_a_client_that_comes_as_it_ends(num_turns: int) -> None:
    """Whichever turn of the loop its accept has reached: broken off, and no task left behind."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        async with fault_proxy(f"{host}:{port}") as proxy:
            front, _, behind = proxy.address.rpartition(":")
            client = socket.create_connection((front, int(behind)), WAIT_S)
            for _ in range(num_turns):
                await asyncio.sleep(0)
        with client, suppress(ConnectionError):
            assert await asyncio.to_thread(client.recv, 1) == b""


async def test_a_blackhole_swallows_nothing_and_says_nothing() -> None:
    async with connection() as (proxy, client, server):
        await client.say(b"early", last=False)
        assert await server.hear(5) == b"early"
        proxy.up.change(stops={Stop.BLACKHOLE: 0})
        await client.say(b"late")
        # The other direction still passes, so the proxy has had its turns.
        await server.say(DATA)
        assert await client.hear_all() == DATA
        assert proxy.up.num_written_bytes == 5
        assert proxy.num_connections == 1
        proxy.up.change(stops={})
        assert await server.hear_all() == b"late"


async def test_a_blackhole_that_becomes_a_reset() -> None:
    async with connection() as (proxy, client, server):
        proxy.up.change(stops={Stop.BLACKHOLE: 3})
        await client.say(b"abcdef", last=False)
        assert await server.hear(3) == b"abc"
        proxy.up.change(stops={Stop.RESET: 0})
        with pytest.raises(ConnectionResetError):
            await server.hear_all()


async def test_buffers_are_bounded() -> None:
    """A sender behind a blackhole is stopped, whatever it has to say."""
    much = bytes(CHUNK_BYTES * MAX_CHUNKS * 8)
    async with connection() as (proxy, client, server):
        proxy.up.change(stops={Stop.BLACKHOLE: 0})
        client.writer.write(much)
        await _quiet(proxy)
        # Those of the queue, and one in the hands of either end of it.
        assert 0 < proxy.up.num_read_bytes <= CHUNK_BYTES * (MAX_CHUNKS + 2)
        proxy.up.change(stops={})
        assert await server.hear(len(much)) == much


async def _quiet(proxy: FaultProxy) -> None:
    """Until it has read nothing for many turns of the loop."""
    num_turns, before = 0, -1
    while num_turns < 500:
        same, before = proxy.up.num_read_bytes == before, proxy.up.num_read_bytes
        num_turns = num_turns + 1 if same and before else 0
        await asyncio.sleep(0)


async def test_a_slow_line_and_a_long_one() -> None:
    """It sleeps as long as its bytes take, and not before they have travelled."""
    slept = list[float]()

    async def sleep(duration_s: float) -> None:
        slept.append(duration_s)
        await asyncio.sleep(0)

    async with connection(sleep) as (proxy, client, server):
        proxy.up.change(bytes_per_s=100.0)
        await client.say(DATA)
        assert await server.hear_all() == DATA
        assert sum(slept) == pytest.approx(len(DATA) / 100.0)
        slept.clear()
        proxy.down.change(latency_s=1000.0)
        await server.say(b"answer")
        assert await client.hear_all() == b"answer"
        assert slept
        assert 900.0 < min(slept) <= max(slept) <= 1000.0
