"""A TCP proxy that hurts what it carries: slow, cut, silent, damaged; each direction by itself."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

CHUNK_BYTES = 4096
"""Read at once: small, so that a slow line is smooth."""
MAX_CHUNKS = 64
"""Under way in one direction of one connection: what a line with latency holds."""
CONNECT_TIMEOUT_S = 5.0

Sleep = Callable[[float], Awaitable[object]]


class Stop(StrEnum):
    """What a line does once it has carried so many bytes of a connection."""

    RESET = "reset"
    """RST to both ends; what is under way is lost."""
    TRUNCATE = "truncate"
    """Both ends are closed as if that had been all."""
    BLACKHOLE = "blackhole"
    """Nothing passes any more, and nobody is told; until it is lifted."""


class _Stopped(Exception):
    """Ends both directions of a connection."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


@dataclass(slots=True, kw_only=True)
class Line:
    """One direction of all connections. `change` its faults at any time."""

    latency_s: float = 0.0
    bytes_per_s: float = float("inf")
    stops: dict[Stop, int] = field(default_factory=dict)
    """After how many bytes of a connection; 0: at once, whatever was carried before."""
    flip_at: int | None = None
    """Which byte of every connection loses its lowest bit, or gets one."""
    flip_share: float = 0.0
    """How many of all bytes, 0 to 1, at random."""
    duplicate_at: int | None = None
    """The chunk with this byte of every connection is sent twice."""
    seed: int = 0
    num_read_bytes: int = 0
    num_written_bytes: int = 0
    _random: random.Random = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def change(self, **faults: object) -> None:
        """Set fields by name; whoever a blackhole holds looks again."""
        for name, value in faults.items():
            setattr(self, name, value)
        if "seed" in faults:
            self._random = random.Random(self.seed)
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Until the next `change`."""
        await self._changed.wait()

    def first_stop(self, num_bytes: int) -> tuple[Stop, int] | None:
        """The first that comes within the first so many bytes, and after how many."""
        due = [(at, stop) for stop, at in self.stops.items() if at <= num_bytes]
        return (min(due)[1], min(due)[0]) if due else None

    def damaged(self, data: bytes, position: int) -> bytes:
        """What becomes of bytes that begin at this position of their connection."""
        changed = bytearray(data)
        if self.flip_at is not None and 0 <= self.flip_at - position < len(data):
            changed[self.flip_at - position] ^= 1
        if self.flip_share:
            for index in range(len(changed)):
                changed[index] ^= self._random.random() < self.flip_share
        twice = self.duplicate_at is not None and 0 <= self.duplicate_at - position < len(data)
        return bytes(changed) * (2 if twice else 1)


@dataclass(slots=True)
class _Pump:
    """One direction of one connection."""

    line: Line
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sleep: Sleep
    _position: int = 0
    _chunks: asyncio.Queue[tuple[float, bytes]] = field(
        default_factory=lambda: asyncio.Queue(MAX_CHUNKS)
    )

    async def read(self) -> None:
        """Take in what comes, as long as there is room; the end too."""
        data = b"-"
        while data:
            data = await self.reader.read(CHUNK_BYTES)
            self.line.num_read_bytes += len(data)
            await self._chunks.put((_now_s() + self.line.latency_s, data))

    async def write(self) -> None:
        """Pass it on in its time, until the end. Raises _Stopped, ConnectionError."""
        data = b"-"
        while data:
            due_at_s, data = await self._chunks.get()
            if (early_s := due_at_s - _now_s()) > 0:
                await self.sleep(early_s)
            await self._pass(data)
        self.writer.write_eof()

    async def _pass(self, data: bytes) -> None:
        while (stop := self.line.first_stop(self._position + len(data))) is not None:
            kind, at = stop
            num_before = max(0, at - self._position)
            before, data = data[:num_before], data[num_before:]
            await self._send(before)
            if kind is not Stop.BLACKHOLE:
                raise _Stopped(kind)
            await self.line.changed()
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        self.writer.write(self.line.damaged(data, self._position))
        await self.writer.drain()
        self._position += len(data)
        self.line.num_written_bytes += len(data)
        if self.line.bytes_per_s != float("inf"):
            await self.sleep(len(data) / self.line.bytes_per_s)


class FaultProxy:
    """Carries connections to one server. `up` is towards it, `down` is what it answers."""

    def __init__(self, target: str, group: asyncio.TaskGroup, sleep: Sleep) -> None:
        self.up = Line()
        self.down = Line()
        self.address = ""
        """host:port to dial instead of the target."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._group = group
        self._sleep = sleep
        self._connections: set[asyncio.Task[None]] = set()
        self._unread: set[socket.socket] = set()
        """Clients whose connection has not had its first turn."""

    @property
    def num_connections(self) -> int:
        """Open now."""
        return len(self._connections)

    def reset(self) -> None:
        """RST to both ends of every connection; new ones are carried as before."""
        for connection in self._connections:
            connection.cancel()

    def listen(self) -> Callable[[], None]:
        """Take clients from now on; what ends that, and every connection with a reset."""
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self.address = "{}:{}".format(*listening.getsockname())
        loop = asyncio.get_running_loop()
        # Not asyncio.start_server: closed while a client comes in, 3.11 forgets that client open.
        loop.add_reader(listening, self._accept, listening)

        def end() -> None:
            loop.remove_reader(listening)
            listening.close()
            self.reset()

        return end

    def _accept(self, listening: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):  # gone again before its turn
            client, _ = listening.accept()
            self._unread.add(client)
            connection = self._group.create_task(self._carry(client))
            self._connections.add(connection)
            connection.add_done_callback(partial(self._forget, client))

    def _forget(self, client: socket.socket, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        if client in self._unread:  # cancelled before its first step, it has closed nothing
            self._unread.discard(client)
            client.close()

    async def _carry(self, client: socket.socket) -> None:
        self._unread.discard(client)
        reader, writer = await asyncio.open_connection(sock=client, limit=CHUNK_BYTES)
        writers = [writer]
        how = Stop.RESET
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            writers.append(far_writer)
            up = _Pump(self.up, reader, far_writer, self._sleep)
            down = _Pump(self.down, far_reader, writer, self._sleep)
            how = await _ended((up, down))
        except OSError:
            pass  # nobody listens there: a reset tells the client; TimeoutError is one too
        finally:
            # All before any wait: a reset may cancel that.
            for each in writers:
                _close(each, how)
            for each in writers:
                with suppress(ConnectionError):
                    await each.wait_closed()


async def _ended(pumps: tuple[_Pump, _Pump]) -> Stop:
    """Run both directions; how to close their connection."""
    how = Stop.TRUNCATE
    try:
        async with asyncio.TaskGroup() as group:
            for pump in pumps:
                group.create_task(pump.read())
                group.create_task(pump.write())
    except* _Stopped as stopped:
        how = next(e.stop for e in stopped.exceptions if isinstance(e, _Stopped))
    except* OSError:
        how = Stop.RESET  # one end has broken off: the other is told
    return how


def _close(writer: asyncio.StreamWriter, how: Stop) -> None:
    if how is Stop.RESET:
        linger = struct.pack("ii", 1, 0)  # close() then sends RST and forgets what it has
        with suppress(OSError):  # the end that broke is closed already
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def fault_proxy(target: str, sleep: Sleep = asyncio.sleep) -> AsyncIterator[FaultProxy]:
    """A proxy for the server at `target` (host:port), on a port of its own; ends with a reset."""
    async with asyncio.TaskGroup() as group:
        proxy = FaultProxy(target, group, sleep)
        end = proxy.listen()
        try:
            yield proxy
        finally:
            end()
