"""What is torchdist's own: groups are kept and reused, never shared, and end with either end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from core.errors import PeerLost
from core.limits import MAX_KV_FRAME_BYTES
from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_group import GLOO, Backend
from kv_transfer.carriers.pair_pool import MAX_GROUPS, MAX_GROUPS_PER_PEER
from kv_transfer.carriers.torchdist import (
    TorchDistCarrier,
    TorchDistInlet,
    TorchDistOutlet,
    check_place,
)
from rpc.pb import kv_transfer_pb2 as pb
from tests.contract.carriers import (
    SOURCE_ADDRESS,
    Pair,
    child,
    listening,
    open_source,
    patterns,
)

HOST = "127.0.0.1"
PATIENCE_S = 30.0
"""Of a test that is stuck; nothing is measured by it."""
SHORT_S = 0.2
"""For what has to time out."""


def carrier(timeout_s: float = PATIENCE_S) -> TorchDistCarrier:
    return TorchDistCarrier(HOST, timeout_s)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(carrier(), carrier())
    yield pair
    pair.close()


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop and the groups' threads go on; the test's patience bounds it."""
    while not is_so():
        await asyncio.to_thread(int)


def num_groups(pair: Pair) -> tuple[int, int]:
    assert isinstance(pair.source, TorchDistCarrier)
    assert isinstance(pair.sink, TorchDistCarrier)
    return pair.source.num_groups, pair.sink.num_groups


def new_outlet(source: TorchDistCarrier, peer: str = "sink") -> TorchDistOutlet:
    return source.outlet(pb.CarrierOffer(carrier="torchdist"), peer)


def announced(outlet: TorchDistOutlet) -> pb.Announce:
    announce = pb.Announce(carrier="torchdist")
    outlet.announce(announce)
    return announce


async def moved(outlet: object) -> None:
    """The source may hear last that its payload has come; a Release takes longer than that."""
    assert isinstance(outlet, TorchDistOutlet)
    await until(lambda: outlet.kept.group.is_still)


async def attach(outlet: TorchDistOutlet, inlet: TorchDistInlet) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(outlet.attach())
        group.create_task(inlet.attach(announced(outlet)))


async def carry(outlet: TorchDistOutlet, inlet: TorchDistInlet, payload: bytes) -> None:
    place = await outlet.place(len(payload))
    place.buffer[:] = payload
    header = pb.SegmentHeader(num_bytes=len(payload))
    await outlet.sent(header, place)
    got = await inlet.payload(header, memoryview(b""))
    assert got is not None
    assert bytes(got) == payload
    await moved(outlet)


async def send_in_vain(outlet: TorchDistOutlet) -> None:
    for _ in range(10):
        await outlet.sent(pb.SegmentHeader(), await outlet.place(100))


async def test_streams_one_after_the_other_use_one_group() -> None:
    with closing(carrier()) as source, closing(carrier()) as sink:
        ids = []
        for index in range(5):
            outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
            await attach(outlet, inlet)
            ids.append(announced(outlet).pair_group.group_id.split("."))
            await carry(outlet, inlet, b"abc" * (index + 1))
            await carry(outlet, inlet, b"d")
            inlet.close()
            outlet.close()
        assert len({group_id for group_id, _ in ids}) == 1
        assert [stream for _, stream in ids] == ["1", "3", "5", "7", "9"]
        assert source.num_groups == sink.num_groups == 1


async def test_peers_and_streams_at_once_have_groups_of_their_own() -> None:
    with closing(carrier()) as source:
        outlets = [new_outlet(source, peer) for peer in ("a", "a", "b")]
        assert len({announced(outlet).pair_group.group_id for outlet in outlets}) == 3
        for outlet in outlets:
            outlet.close()


async def test_a_peer_has_so_many_groups_and_no_more() -> None:
    with closing(carrier()) as source:
        outlets = [new_outlet(source) for _ in range(MAX_GROUPS_PER_PEER)]
        with pytest.raises(CarrierUnusable, match="this peer"):
            new_outlet(source)
        others = [
            new_outlet(source, str(index)) for index in range(MAX_GROUPS - MAX_GROUPS_PER_PEER)
        ]
        with pytest.raises(CarrierUnusable, match="all 16"):
            new_outlet(source, "yet another")
        for outlet in outlets + others:
            outlet.close()
        await until(lambda: source.num_groups == 0)


async def test_the_group_that_was_idle_longest_makes_room() -> None:
    with closing(carrier()) as source, closing(carrier()) as sink:
        for peer in range(MAX_GROUPS + 3):
            outlet, inlet = new_outlet(source, str(peer)), sink.inlet(SOURCE_ADDRESS)
            await attach(outlet, inlet)
            await carry(outlet, inlet, b"x")
            inlet.close()
            outlet.close()
        assert source.num_groups == MAX_GROUPS
        again = new_outlet(source, str(MAX_GROUPS))
        assert announced(again).pair_group.group_id.endswith(".2")
        again.close()


@pytest.mark.parametrize("end", ["source", "sink"])
async def test_an_idle_group_ends_with_its_other_end(pair: Pair, end: str) -> None:
    async with pair.stream() as (source, sink), asyncio.TaskGroup() as group:
        group.create_task(source.send(b"x"))
        group.create_task(sink.look())
    assert num_groups(pair) == (1, 1)
    (pair.source if end == "source" else pair.sink).close()
    await until(lambda: num_groups(pair) == (0, 0))


async def test_a_payload_that_nobody_asks_for_ends_the_group_on_both_ends(pair: Pair) -> None:
    async with pair.stream() as (source, sink):
        await source.send(b"x")
        await sink.read()
    await until(lambda: num_groups(pair) == (0, 0))


async def test_a_payload_that_nobody_takes_is_not_the_next_streams() -> None:
    """The sink had asked for it ahead, so the source saw it go."""
    with closing(carrier()) as source, closing(carrier()) as sink:
        outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
        await attach(outlet, inlet)
        await carry(outlet, inlet, b"first")
        await outlet.sent(pb.SegmentHeader(), await outlet.place(5))
        await moved(outlet)
        inlet.close()
        outlet.close()
        outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
        await attach(outlet, inlet)
        assert announced(outlet).pair_group.group_id.endswith(".3")
        await carry(outlet, inlet, b"third")
        inlet.close()
        outlet.close()
        assert source.num_groups == sink.num_groups == 1


@pytest.mark.parametrize("next_payload", [2, 5, 999_999_999])
async def test_ends_that_count_differently_part(next_payload: int) -> None:
    with closing(carrier()) as source, closing(carrier()) as sink:
        outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
        await attach(outlet, inlet)
        for _ in range(1 + (next_payload == 2)):
            await carry(outlet, inlet, b"x")
        inlet.close()
        outlet.close()
        announce = announced(outlet)
        group_id, _ = announce.pair_group.group_id.split(".")
        announce.pair_group.group_id = f"{group_id}.{next_payload}"
        inlet = sink.inlet(SOURCE_ADDRESS)
        with pytest.raises(CarrierUnusable, match="payloads apart"):
            await inlet.attach(announce)
        inlet.close()
        await until(lambda: source.num_groups == sink.num_groups == 0)


async def test_a_stream_without_payloads_proves_nothing(pair: Pair) -> None:
    async with pair.stream():
        pass
    await until(lambda: num_groups(pair) == (0, 0))


async def test_a_wait_for_a_payload_ends_in_time() -> None:
    with closing(carrier()) as source, closing(carrier(SHORT_S)) as sink:
        outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
        await attach(outlet, inlet)
        with pytest.raises(PeerLost):
            await inlet.payload(pb.SegmentHeader(num_bytes=5), memoryview(b""))
        with pytest.raises(PeerLost):
            await inlet.payload(pb.SegmentHeader(num_bytes=5), memoryview(b""))
        inlet.close()
        outlet.close()
        await until(lambda: source.num_groups == sink.num_groups == 0)


async def test_sends_that_are_not_received_end_in_time() -> None:
    with closing(carrier(SHORT_S)) as source, closing(carrier()) as sink:
        outlet, inlet = new_outlet(source), sink.inlet(SOURCE_ADDRESS)
        await attach(outlet, inlet)
        with pytest.raises(PeerLost):
            await send_in_vain(outlet)
        inlet.close()
        outlet.close()
        await until(lambda: source.num_groups == sink.num_groups == 0)


async def test_a_cancelled_payload_ends_the_group(pair: Pair) -> None:
    async with pair.stream() as (_, sink):
        header = pb.SegmentHeader(num_bytes=5)
        taking = asyncio.get_running_loop().create_task(sink.inlet.payload(header, memoryview(b"")))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait({taking})
    await until(lambda: num_groups(pair) == (0, 0))


async def test_a_killed_sink_is_lost_to_the_source() -> None:
    with closing(carrier()) as source:
        async with (
            child("torchdist", "idle_sink", []) as sink,
            listening(end := await open_source(source, sink.wire)),
        ):
            await end.send(b"x" * 1000)
            sink.kill()
            with pytest.raises((PeerLost, ConnectionError)):
                await end.send_all(patterns([1000] * 10))
        await until(lambda: source.num_groups == 0)


@pytest.mark.parametrize("num_bytes", [0, MAX_KV_FRAME_BYTES + 1, 2**32 - 1])
async def test_no_payload_has_such_a_size(pair: Pair, num_bytes: int) -> None:
    async with pair.stream() as (_, sink):
        header = pb.SegmentHeader(num_bytes=num_bytes)
        assert await sink.inlet.payload(header, memoryview(b"")) is None
        with pytest.raises(PeerLost):
            await sink.inlet.payload(pb.SegmentHeader(num_bytes=1), memoryview(b""))


async def test_a_header_that_asks_for_less_than_was_sent_ends_nobody(pair: Pair) -> None:
    async with pair.stream() as (source, sink):
        await source.send(b"x" * 5000)
        got = await sink.inlet.payload(pb.SegmentHeader(num_bytes=7), memoryview(b""))
        assert got is not None
        assert got.nbytes == 7


NOWHERE = "127.0.0.1:1"
ANNOUNCED = [
    # id                       group id            address
    ("no group", "", NOWHERE),
    ("not hexadecimal", "z" * 32 + ".1", NOWHERE),
    ("no stream", "a" * 32, NOWHERE),
    ("stream 0", "a" * 32 + ".0", NOWHERE),
    ("a huge stream", "a" * 32 + ".1" + "0" * 9, NOWHERE),
    ("no address", "a" * 32 + ".1", ""),
    ("a file", "a" * 32 + ".1", "unix:/tmp/x"),
    ("nobody listens", "a" * 32 + ".1", NOWHERE),
    ("not here any more", "a" * 32 + ".2", NOWHERE),
]


@pytest.mark.parametrize(
    ("group_id", "address"), [row[1:] for row in ANNOUNCED], ids=[row[0] for row in ANNOUNCED]
)
async def test_what_cannot_be_attached(group_id: str, address: str) -> None:
    with closing(carrier()) as sink:
        inlet = sink.inlet(SOURCE_ADDRESS)
        announce = pb.Announce(pair_group=pb.PairGroup(group_id=group_id, store_address=address))
        with pytest.raises(CarrierUnusable):
            await inlet.attach(announce)
        inlet.close()
        await until(lambda: sink.num_groups == 0)


async def test_a_listener_that_says_nothing_is_left_in_time() -> None:
    with closing(carrier(SHORT_S)) as sink, socket.create_server((HOST, 0)) as mute:
        inlet = sink.inlet(SOURCE_ADDRESS)
        announce = pb.Announce()
        announce.pair_group.group_id = "a" * 32 + ".1"
        announce.pair_group.store_address = f"{HOST}:{mute.getsockname()[1]}"
        with pytest.raises(CarrierUnusable):
            await inlet.attach(announce)
        inlet.close()
        await until(lambda: sink.num_groups == 0)


async def test_a_sink_that_does_not_come_is_left_in_time() -> None:
    with closing(carrier(SHORT_S)) as source:
        outlet = new_outlet(source)
        with pytest.raises(CarrierUnusable):
            await outlet.attach()
        outlet.close()
        await until(lambda: source.num_groups == 0)


async def test_a_source_that_stops_waiting_leaves_nothing() -> None:
    with closing(carrier()) as source:
        outlet = new_outlet(source)
        attaching = asyncio.get_running_loop().create_task(outlet.attach())
        await asyncio.sleep(0)
        attaching.cancel()
        await asyncio.wait({attaching})
        outlet.close()
        await until(lambda: source.num_groups == 0)


FAKE_NCCL = Backend("nccl", GLOO.connect, "GPU-1")
PLACES = [
    # id                        ours       theirs        can meet
    ("two hosts", GLOO, "", True),
    ("two devices", FAKE_NCCL, "nccl:GPU-2", True),
    ("one device for both", FAKE_NCCL, "nccl:GPU-1", False),
    ("a device and a host", FAKE_NCCL, "", False),
    ("a host and a device", GLOO, "nccl:GPU-1", False),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "can_meet"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES]
)
def test_who_can_meet(ours: Backend, theirs: str, can_meet: bool) -> None:
    if can_meet:
        check_place(ours, theirs)
    else:
        with pytest.raises(CarrierUnusable):
            check_place(ours, theirs)


def test_a_backend_offers_its_device() -> None:
    with closing(TorchDistCarrier(HOST, PATIENCE_S, replace(FAKE_NCCL, device="GPU-7"))) as there:
        offer = there.offer()
    assert offer is not None
    assert offer.place == "nccl:GPU-7"
