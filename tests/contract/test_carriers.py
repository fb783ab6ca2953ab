"""What every carrier promises, whatever moves its bytes."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Iterator

import pytest

from kv_transfer.carriers.contract import CarrierUnusable, Place
from rpc.pb import kv_transfer_pb2 as pb
from tests.contract.carriers import (
    KINDS,
    NOTHING,
    SOURCE_ADDRESS,
    Held,
    Pair,
    SinkEnd,
    SourceEnd,
    Wire,
    child,
    listening,
    open_sink,
    open_source,
    paired,
    pattern,
    patterns,
    turns,
)

MIB = 1024 * 1024
SIZES = {
    "one byte": [1],
    "the largest": [4 * MIB],
    "odd ones": [1, 4095, 4097, 3, MIB + 1, 65536],
    "many": [10_000] * 200,
    "more large ones than there are slots": [4 * MIB] * 40,
}
FEW = [1, 4 * MIB, 4097, *[MIB] * 40]
MANY_STREAMS = 40
"""More than there are slots: one lost by each would be missed."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
async def nothing_left(kind: str) -> AsyncIterator[None]:
    """No memory, descriptor, thread or task outlives carriers that are closed."""
    gc.collect()
    before = Held()
    yield
    gc.collect()
    assert Held().beyond(before) == NOTHING


@pytest.fixture
def pair(kind: str, nothing_left: None) -> Iterator[Pair]:
    with paired(kind) as pair:
        yield pair


async def carry(source: SourceEnd, sink: SinkEnd, payloads: list[bytes]) -> list[bytes | None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(source.send_all(payloads))
        taking = group.create_task(sink.take_all(len(payloads)))
    return taking.result()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
async def test_bytes_arrive_as_they_were(pair: Pair, sizes: list[int]) -> None:
    payloads = patterns(sizes)
    async with pair.stream() as (source, sink):
        assert await carry(source, sink, payloads) == payloads


async def test_streams_of_many_sizes_follow_each_other(pair: Pair) -> None:
    random_sizes = random.Random(5)
    for _ in range(MANY_STREAMS):
        sizes = [random_sizes.randrange(1, 20_000) for _ in range(random_sizes.randrange(1, 12))]
        async with pair.stream() as (source, sink):
            assert await carry(source, sink, patterns(sizes)) == patterns(sizes)


async def test_two_streams_do_not_meet(pair: Pair) -> None:
    sizes = [100_000] * 30
    one, other = patterns(sizes), patterns(sizes, first=len(sizes))
    async with pair.stream() as first, pair.stream() as second, asyncio.TaskGroup() as group:
        carrying = group.create_task(carry(*first, one))
        assert await carry(*second, other) == other
        assert await carrying == one


async def test_a_child_sink_gets_the_same(pair: Pair, kind: str) -> None:
    async with (
        child(kind, "sink", FEW) as sink,
        listening(source := await open_source(pair.source, sink.wire)) as words,
    ):
        await source.send_all(patterns(FEW))
        assert await words == "whole"


async def test_a_child_source_gives_the_same(pair: Pair, kind: str) -> None:
    async with child(kind, "source", FEW) as source:
        sink = await open_sink(pair.sink, source.wire)
        try:
            assert await sink.take_all(len(FEW)) == patterns(FEW)
        finally:
            sink.inlet.close()


@pytest.mark.parametrize("first_to_close", ["source", "sink"])
async def test_an_end_may_close_in_the_middle(pair: Pair, first_to_close: str) -> None:
    for index in range(MANY_STREAMS):
        async with pair.stream() as (source, sink):
            async with asyncio.TaskGroup() as group:
                group.create_task(source.send_all(patterns([1000, 1000])))
                assert await sink.look() == pattern(0, 1000)
                if index % 2:
                    await sink.look()
            end = source.outlet if first_to_close == "source" else sink.inlet
            end.close()
            end.close()
    async with pair.stream() as (source, sink):
        assert await carry(source, sink, patterns(FEW)) == patterns(FEW)


async def place_all(source: SourceEnd) -> tuple[list[Place], "asyncio.Task[Place]"]:
    """Places until one has to wait; that one's task."""
    places: list[Place] = []
    while True:
        placing = asyncio.get_running_loop().create_task(source.outlet.place(1000))
        await turns()
        if not placing.done():
            return places, placing
        places.append(placing.result())
        assert len(places) < 1000, "nothing bounds what a stream holds"


def skip_without_memory(sink: SinkEnd) -> None:
    if not sink.inlet.says_emptied:
        pytest.skip("has no memory that waits to be emptied")


async def test_a_full_stream_waits_until_its_sink_empties(pair: Pair) -> None:
    async with pair.stream() as (source, sink):
        skip_without_memory(sink)
        places, waiting = await place_all(source)
        for index, place in enumerate(places):
            await source.send_filled(place, pattern(index, 1000))
            assert await sink.look() == pattern(index, 1000)
            await turns()
        assert not waiting.done()
        await sink.empty()
        await source.send_filled(await waiting, pattern(len(places), 1000))
        for _ in places:
            await sink.empty()
        assert await sink.look() == pattern(len(places), 1000)


async def test_a_cancelled_wait_takes_nothing(pair: Pair) -> None:
    async with pair.stream() as (source, sink):
        skip_without_memory(sink)
        places, waiting = await place_all(source)
        waiting.cancel()
        for index, place in enumerate(places):
            await source.send_filled(place, pattern(index, 1000))
        assert await sink.take_all(len(places)) == patterns([1000] * len(places))
        await turns()
        again, waiting = await place_all(source)
        waiting.cancel()
        assert len(again) == len(places)
        await asyncio.wait({waiting})


WILD = [0, 1, 2**31, 2**32 - 1]


async def test_a_damaged_header_crashes_nobody(pair: Pair) -> None:
    async with pair.stream() as (source, sink):
        sending = asyncio.get_running_loop().create_task(source.send(pattern(0, 5000)))
        frame = await sink.read()
        payload = await sink.inlet.payload(frame.message.segment, frame.payload)
        await sending
        assert payload is not None
        assert bytes(payload) == pattern(0, 5000)
        if not sink.inlet.says_emptied and frame.message.segment.num_bytes and not frame.payload:
            pytest.skip("damage is of a payload that is under way: see its own tests")
        for num_bytes in (5000, *WILD):
            for offset in (frame.message.segment.offset, *WILD, 2**64 - 1, 2**63):
                for generation in (frame.message.segment.generation, *WILD, 2**64 - 1):
                    header = pb.SegmentHeader(
                        num_bytes=num_bytes, offset=offset, generation=generation
                    )
                    got = await sink.inlet.payload(header, frame.payload)
                    assert got is None or got.nbytes == num_bytes
                    sink.inlet.is_intact(header)


async def receive_to_the_end(wire: Wire) -> None:
    while True:
        await wire.receive()


async def test_a_killed_source_leaves_nothing(pair: Pair, kind: str) -> None:
    sizes = [MIB] * 100
    async with child(kind, "source", sizes) as source:
        sink = await open_sink(pair.sink, source.wire)
        assert await sink.take_all(3) == patterns(sizes[:3])
        source.kill()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await receive_to_the_end(source.wire)
        sink.inlet.close()
    async with pair.stream() as (alive, other):
        assert await carry(alive, other, patterns(FEW)) == patterns(FEW)


async def test_a_killed_sink_leaves_nothing(pair: Pair, kind: str) -> None:
    for _ in range(2):
        async with (
            child(kind, "idle_sink", []) as sink,
            listening(source := await open_source(pair.source, sink.wire)) as words,
        ):
            place = await source.outlet.place(1000)
            sink.kill()
            assert await words == ""
            place.buffer[:] = pattern(0, 1000)
    async with pair.stream() as (alive, other):
        assert await carry(alive, other, patterns(FEW)) == patterns(FEW)


async def test_who_cannot_meet_is_told(pair: Pair) -> None:
    offer = pair.sink.offer()
    assert offer is not None
    if not offer.place:
        pytest.skip("reaches every place")
    with pytest.raises(CarrierUnusable):
        pair.source.outlet(pb.CarrierOffer(carrier=offer.carrier, place="elsewhere"), "sink")


@pytest.mark.parametrize("announced", ["nothing", "another kind's"])
async def test_nonsense_cannot_be_attached(pair: Pair, announced: str) -> None:
    inlet = pair.sink.inlet(SOURCE_ADDRESS)
    if inlet.carrier == "grpc":
        pytest.skip("attaches to nothing")
    announce = pb.Announce(carrier=inlet.carrier)
    if announced == "another kind's":
        other = {"shm": "pair_group", "torchdist": "shm"}[inlet.carrier]
        getattr(announce, other).SetInParent()
    with pytest.raises(CarrierUnusable):
        await inlet.attach(announce)
    inlet.close()
