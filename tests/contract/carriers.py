"""What the carriers' suite drives: the two ends of a stream, in one process or in two.

Run as a program it is one end: `python -m tests.contract.carriers KIND PART FD SIZE...`.
"""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from core.limits import MAX_KV_FRAME_BYTES
from kv_transfer.carriers.contract import Carrier, Inlet, Outlet, Place
from kv_transfer.carriers.inline import INLINE, InlineInlet, InlineOutlet
from kv_transfer.carriers.shm import ShmCarrier
from kv_transfer.carriers.torchdist import TorchDistCarrier
from rpc.kv_wire import FetchFrame, read_frame, write_frame
from rpc.pb import kv_transfer_pb2 as pb

PATIENCE_S = 60.0
"""Of a whole stream; a bound, not a measure."""
SOURCE_ADDRESS = "127.0.0.1:1"
"""Where a Fetch call would go."""
ROOT = Path(__file__).parents[2]
_LENGTH_BYTES = 4
_LOOP_TURNS = 20
"""More than any chain of wake-ups inside one process takes."""


class InlineCarrier:
    """Inline bytes as a carrier among others."""

    name = INLINE

    def offer(self) -> pb.CarrierOffer | None:
        return pb.CarrierOffer(carrier=INLINE)

    def outlet(self, offer: pb.CarrierOffer, peer: str) -> Outlet:
        return InlineOutlet()

    def inlet(self, source_address: str) -> Inlet:
        return InlineInlet()

    def close(self) -> None:
        """Nothing is held."""


KINDS: dict[str, Callable[[], Carrier]] = {
    "grpc": InlineCarrier,
    "shm": ShmCarrier,
    "torchdist": partial(TorchDistCarrier, "127.0.0.1", timeout_s=20.0),
}
"""Add a row, and the suite tells whether it is a carrier."""


def pattern(index: int, num_bytes: int) -> bytes:
    """Payload of segment `index`; any two differ, whatever their place."""
    return np.random.default_rng((index, num_bytes)).bytes(num_bytes)


def patterns(sizes: Sequence[int], first: int = 0) -> list[bytes]:
    """Payloads of the segments from `first` on."""
    return [pattern(first + index, num_bytes) for index, num_bytes in enumerate(sizes)]


@dataclass
class Wire:
    """Stands for the Fetch stream: whole messages over a socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: bytes) -> None:
        self.writer.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
        await self.writer.drain()

    async def receive(self) -> bytes:
        """Raises IncompleteReadError or ConnectionError when the other end is gone."""
        num_bytes = int.from_bytes(await self.reader.readexactly(_LENGTH_BYTES), "big")
        return await self.reader.readexactly(num_bytes)

    async def request(self) -> pb.FetchRequest:
        return pb.FetchRequest.FromString(await self.receive())


@asynccontextmanager
async def wire_on(end: socket.socket) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(sock=end, limit=MAX_KV_FRAME_BYTES)
    try:
        yield Wire(reader, writer)
    finally:
        # Not `wait_closed`, which raises what a killed peer did to the socket.
        writer.transport.abort()
        await turns()


async def turns() -> None:
    """Let everything that can go on without the outside go on."""
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


@dataclass
class SourceEnd:
    """Sends payloads as kv_transfer.send does."""

    outlet: Outlet
    wire: Wire
    num_sent: int = 0

    async def send(self, payload: bytes) -> None:
        place = await self.outlet.place(len(payload))
        await self.send_filled(place, payload)

    async def send_filled(self, place: Place, payload: bytes) -> pb.SegmentHeader:
        place.buffer[:] = payload
        header = pb.SegmentHeader(
            index=self.num_sent, num_bytes=len(payload), checksum=zlib.crc32(payload)
        )
        await self.wire.send(self.outlet.frame(header, place))
        await self.outlet.sent(header, place)
        self.num_sent += 1
        return header

    async def send_all(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            await self.send(payload)

    async def listen(self) -> str:
        """Pass the sink's words on until it is gone; its verdict, if it gave one."""
        verdict = ""
        try:
            while True:
                request = await self.wire.request()
                self.outlet.emptied(request.emptied.num_segments)
                verdict = request.fallback.reason or verdict
        except (asyncio.IncompleteReadError, ConnectionError):
            return verdict


@dataclass
class SinkEnd:
    """Takes payloads as kv_transfer.receive does."""

    inlet: Inlet
    wire: Wire
    num_emptied: int = 0

    async def read(self) -> FetchFrame:
        return read_frame(await self.wire.receive())

    async def look(self) -> bytes | None:
        """The next payload; the source is told nothing."""
        frame = await self.read()
        header = frame.message.segment
        payload = await self.inlet.payload(header, frame.payload)
        copied = None if payload is None else bytes(payload)
        whole = copied is not None and zlib.crc32(copied) == header.checksum
        return copied if whole and self.inlet.is_intact(header) else None

    async def empty(self) -> None:
        """The next of those looked at is done with."""
        self.num_emptied += 1
        if self.inlet.says_emptied:
            emptied = pb.Emptied(num_segments=self.num_emptied)
            await self.wire.send(pb.FetchRequest(emptied=emptied).SerializeToString())

    async def take_all(self, num_segments: int) -> list[bytes | None]:
        taken = []
        for _ in range(num_segments):
            taken.append(await self.look())
            await self.empty()
        return taken


async def open_source(carrier: Carrier, wire: Wire) -> SourceEnd:
    """Answer a Fetch; ready when the sink is."""
    opened = (await wire.request()).open
    source = SourceEnd(carrier.outlet(opened.offers[0], opened.fetcher_id), wire)
    try:
        announce = pb.Announce(carrier=source.outlet.carrier)
        source.outlet.announce(announce)
        await wire.send(write_frame(pb.FetchResponse(announce=announce)))
        await source.outlet.attach()
        assert (await wire.request()).WhichOneof("message") == "credit"
    except BaseException:
        source.outlet.close()
        raise
    return source


async def open_sink(carrier: Carrier, wire: Wire) -> SinkEnd:
    """Open a Fetch; ready when the source is."""
    offer = carrier.offer()
    assert offer is not None
    opening = pb.FetchOpen(offers=[offer], fetcher_id="sink")
    await wire.send(pb.FetchRequest(open=opening).SerializeToString())
    sink = SinkEnd(carrier.inlet(SOURCE_ADDRESS), wire)
    try:
        announce = read_frame(await wire.receive()).message.announce
        assert announce.carrier == sink.inlet.carrier == carrier.name
        await sink.inlet.attach(announce)
        await wire.send(pb.FetchRequest(credit=pb.Credit(num_tokens=1)).SerializeToString())
    except BaseException:
        sink.inlet.close()
        raise
    return sink


@asynccontextmanager
async def listening(source: SourceEnd) -> AsyncIterator["asyncio.Task[str]"]:
    """Hears the sink's words; closes the outlet."""
    try:
        async with asyncio.TaskGroup() as group:
            yield (task := group.create_task(source.listen()))
            task.cancel()
    finally:
        source.outlet.close()


@dataclass
class Pair:
    """Two instances' carriers of one kind, in this process."""

    source: Carrier
    sink: Carrier

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[tuple[SourceEnd, SinkEnd]]:
        """Both ends of a new stream."""
        near, far = socket.socketpair()
        async with asyncio.timeout(PATIENCE_S), wire_on(near) as down, wire_on(far) as up:
            async with asyncio.TaskGroup() as group:
                opening = group.create_task(open_source(self.source, down))
                sink = await open_sink(self.sink, up)
            with closing(sink.inlet):
                async with listening(opening.result()):
                    yield opening.result(), sink

    def close(self) -> None:
        self.source.close()
        self.sink.close()


@contextmanager
def paired(kind: str) -> Iterator[Pair]:
    pair = Pair(KINDS[kind](), KINDS[kind]())
    try:
        yield pair
    finally:
        pair.close()


@dataclass
class Child:
    """The other end in a process of its own."""

    process: "subprocess.Popen[bytes]"
    wire: Wire

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@asynccontextmanager
async def child(kind: str, part: str, sizes: Sequence[int]) -> AsyncIterator[Child]:
    """One of PARTS; what it has not done when this is left, it does not do."""
    near, far = socket.socketpair()
    with _started([kind, part, str(far.fileno()), *map(str, sizes)], far) as process:
        async with asyncio.timeout(PATIENCE_S), wire_on(near) as wire:
            yield Child(process, wire)


@contextmanager
def _started(arguments: Sequence[str], wire: socket.socket) -> Iterator["subprocess.Popen[bytes]"]:
    with wire:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.carriers", *arguments],
            cwd=ROOT,
            pass_fds=[wire.fileno()],
            stdin=subprocess.PIPE,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Held:
    """What this process has of the host's; a descriptor is its number and what it stands for."""

    descriptors: frozenset[tuple[str, str]] = field(default_factory=lambda: _descriptors())
    mapped: frozenset[str] = field(
        default_factory=lambda: frozenset(
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "/memfd:baton" in line
        )
    )
    threads: frozenset[tuple[int | None, str]] = field(
        default_factory=lambda: frozenset((t.ident, t.name) for t in threading.enumerate())
    )
    tasks: frozenset["asyncio.Task[object]"] = field(
        default_factory=lambda: frozenset(asyncio.all_tasks() - {asyncio.current_task()})
    )

    def beyond(self, earlier: "Held") -> "Held":
        """What was not held earlier. What is no longer held may be another suite's: libraries
        give back descriptors of closed servers from threads of their own, whenever they like."""
        return Held(
            self.descriptors - earlier.descriptors,
            self.mapped - earlier.mapped,
            self.threads - earlier.threads,
            self.tasks - earlier.tasks,
        )


NOTHING = Held(frozenset(), frozenset(), frozenset(), frozenset())


def _descriptors() -> frozenset[tuple[str, str]]:
    """One that is closed while they are read, the listing's own for one, is not held."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return frozenset(found)


async def _child_source(carrier: Carrier, wire: Wire, sizes: Sequence[int]) -> None:
    async with listening(source := await open_source(carrier, wire)):
        await source.send_all(patterns(sizes))
        await asyncio.to_thread(sys.stdin.buffer.read)


async def _child_sink(carrier: Carrier, wire: Wire, sizes: Sequence[int]) -> None:
    with closing((sink := await open_sink(carrier, wire)).inlet):
        taken = await sink.take_all(len(sizes))
    verdict = pb.Fallback(reason="whole" if taken == patterns(sizes) else "damaged")
    await wire.send(pb.FetchRequest(fallback=verdict).SerializeToString())


async def _child_idle_sink(carrier: Carrier, wire: Wire, sizes: Sequence[int]) -> None:
    with closing((await open_sink(carrier, wire)).inlet):
        await asyncio.to_thread(sys.stdin.buffer.read)


PARTS = {"source": _child_source, "sink": _child_sink, "idle_sink": _child_idle_sink}


async def _main(kind: str, part: str, descriptor: str, *sizes: str) -> None:
    carrier = KINDS[kind]()
    async with asyncio.timeout(PATIENCE_S), wire_on(socket.socket(fileno=int(descriptor))) as wire:
        await PARTS[part](carrier, wire, [int(size) for size in sizes])
    carrier.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
