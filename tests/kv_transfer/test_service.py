"""What the service answers to peers that break the contract, and what it says of time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from core.capability import Purpose
from core.clock import ManualClock
from core.errors import (
    BatonError,
    Incompatible,
    InvalidRequest,
    KvCorrupt,
    StaleFence,
    UnknownRequest,
)
from core.ids import HandoffId
from core.request import Fence
from core.work import PROTOCOL_VERSION, KvLostReason
from kv_transfer import fetch
from kv_transfer.sink import Sink
from kv_transfer.source import FirstToken
from rpc.dial import dial
from rpc.kv_wire import FETCH
from rpc.pb import kv_transfer_pb2 as pb
from rpc.pb.kv_transfer_pb2_grpc import KvTransferStub
from rpc.pb.types_pb2 import Fence as PbFence
from rpc.status import error_from
from tests.kv_transfer.support import (
    FINGERPRINT,
    ID,
    INSTANCE_ID,
    QUICK,
    Instance,
    fetched,
    instance,
    leave,
    lost,
    until,
)

if TYPE_CHECKING:
    from rpc.pb.kv_transfer_pb2_grpc import KvTransferAsyncStub

OPEN = pb.FetchOpen(
    handoff_id=ID,
    fence=PbFence(epoch=0, attempt=1),
    fingerprint=FINGERPRINT,
    protocol_version=PROTOCOL_VERSION,
    max_segment_bytes=4096,
    wire_format="stored",
    fetcher_id=INSTANCE_ID,
    capability=leave(),
)


def opening(**fields: object) -> bytes:
    changed = pb.FetchOpen()
    changed.CopyFrom(OPEN)
    for name, value in fields.items():
        setattr(changed, name, value)
    return pb.FetchRequest(open=changed).SerializeToString()


def prefix_opening(token_ids: Sequence[int], max_tokens: int) -> bytes:
    changed = pb.FetchOpen()
    changed.CopyFrom(OPEN)
    changed.handoff_id = "other/0"
    changed.capability = leave(HandoffId("other/0"), purpose=Purpose.PREFIX)
    wanted = pb.PrefixWanted(token_ids=token_ids, max_tokens=max_tokens)
    changed.prefix.CopyFrom(wanted)
    return pb.FetchRequest(open=changed).SerializeToString()


def shown(handoff_id: str, attempt: int) -> pb.Leave:
    signed = leave(HandoffId(handoff_id), Fence(0, attempt))
    return pb.Leave(fetcher_id=INSTANCE_ID, capability=signed)


def refetch(index: int) -> bytes:
    return pb.FetchRequest(refetch=pb.Refetch(index=index)).SerializeToString()


GARBAGE = b"\xff\xff\xff"
CREDIT = pb.FetchRequest(credit=pb.Credit(num_tokens=2**32 - 1)).SerializeToString()
LYING = pb.FetchRequest(credit=pb.Credit(num_tokens=16, num_cached_tokens=17)).SerializeToString()
HOSTILE: list[tuple[str, list[bytes], type[BatonError]]] = [
    ("garbage", [GARBAGE], InvalidRequest),
    ("garbage after the opening", [opening(), GARBAGE], InvalidRequest),
    ("nothing", [], InvalidRequest),
    ("an empty message", [b""], InvalidRequest),
    ("credit first", [CREDIT], InvalidRequest),
    ("two openings", [opening(), opening()], InvalidRequest),
    ("tiny segments", [opening(max_segment_bytes=1)], InvalidRequest),
    ("huge segments", [opening(max_segment_bytes=2**32 - 1)], InvalidRequest),
    ("odd id", [opening(handoff_id="../../x y")], InvalidRequest),
    ("another version", [opening(protocol_version=99)], Incompatible),
    ("another model", [opening(fingerprint="g")], Incompatible),
    ("an unknown wire format", [opening(wire_format="zip")], InvalidRequest),
    ("an odd fetcher", [opening(fetcher_id="../x y")], InvalidRequest),
    ("more cached than credited", [opening(), LYING], InvalidRequest),
    ("a prefix of nothing", [prefix_opening([], 0)], InvalidRequest),
    ("a prefix longer than its prompt", [prefix_opening([1, 2], 3)], InvalidRequest),
    ("a prefix that nobody caches", [prefix_opening(range(32), 32)], UnknownRequest),
]


async def talk(peer: Instance, messages: Sequence[bytes]) -> BatonError | None:
    """Send raw messages on a Fetch stream; how it ends."""
    async with dial(peer.address) as channel, asyncio.timeout(10):
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(FETCH)()
        try:
            for message in messages:
                await call.write(message)
            if not messages:
                await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            status = grpc.aio.AioRpcError(
                await call.code(),
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
            return error_from(status)
    return None


async def _is_end(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> bool:
    frame = await call.read()
    assert isinstance(frame, bytes)
    return pb.FetchResponse.FromString(frame).HasField("end")


async def _refetch_on(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
    for _ in range(99):
        await call.write(refetch(0))
        await call.read()


async def test_endless_refetches_end_the_stream() -> None:
    """Step by step: grpc.aio masks the status of a call that ends under a write."""
    async with instance() as prefill, dial(prefill.address) as channel, asyncio.timeout(10):
        prefill.prefill(100)
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(FETCH)()
        for message in (opening(), CREDIT):
            await call.write(message)
        while not await _is_end(call):
            pass
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await _refetch_on(call)
        assert type(error_from(ended.value)) is KvCorrupt


@pytest.mark.parametrize(
    ("messages", "error"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE]
)
async def test_hostile_readers(messages: list[bytes], error: type[BatonError]) -> None:
    async with instance() as prefill, instance() as decode:
        kv = prefill.prefill(100)
        assert type(await talk(prefill, messages)) is error
        # It harmed only itself.
        sink = decode.sink()
        await fetched(decode, prefill, sink, 100)
        assert decode.take(sink) == kv


@asynccontextmanager
async def stub_of(peer: Instance) -> "AsyncIterator[KvTransferAsyncStub]":
    async with dial(peer.address) as channel:
        yield KvTransferStub(channel)


async def test_leases_over_the_wire() -> None:
    clock = ManualClock()
    async with instance(clock=clock) as prefill, stub_of(prefill) as stub:
        prefill.prefill(16, Fence(0, 2))
        clock.advance(1.0)
        renewal = pb.RenewRequest(handoff_id=ID, fence=PbFence(attempt=2), leave=shown(ID, 2))
        assert (await stub.Renew(renewal)).lease_ttl_s == QUICK.lease_ttl_s
        assert prefill.book.source(ID).expires_at_s == 1.0 + QUICK.lease_ttl_s

        async def refused(handoff_id: str, attempt: int) -> BatonError:
            request = pb.RenewRequest(
                handoff_id=handoff_id,
                fence=PbFence(attempt=attempt),
                leave=shown(handoff_id, attempt),
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Renew(request)
            return error_from(caught.value)

        assert type(await refused(ID, 1)) is StaleFence
        assert type(await refused(ID, 0)) is InvalidRequest
        assert type(await refused("unknown", 1)) is UnknownRequest
        release = pb.ReleaseRequest(
            handoff_id=ID, fence=PbFence(attempt=2), committed=True, leave=shown(ID, 2)
        )
        for _ in range(2):
            await stub.Release(release)
        prefill.assert_no_leak()


async def test_a_wait_for_credit_is_not_the_transfers() -> None:
    clock = ManualClock()
    async with instance(clock=clock) as prefill, instance() as decode:
        prefill.prefill(16)  # its token at moment 0
        sink = decode.sink()

        async def reserve_late(sink: Sink) -> None:
            # Seen by the source as a wait of its own, before and after.
            await until(lambda: prefill.book.source(ID).reader is not None)
            await asyncio.sleep(0.01)
            clock.advance(2.0)
            await decode.reserve(sink)

        timing = (await fetched(decode, prefill, sink, 16, reserve_late)).timing
        assert timing.credit_wait_s == 2.0
        assert (timing.source_tail_s, timing.first_segment_lead_s) == (0.0, 0.0)


async def test_a_segment_ahead_of_the_token_leads() -> None:
    clock = ManualClock()
    async with instance(clock=clock) as prefill, instance() as decode:
        source = prefill.accept()
        prefill.start(source, 32)
        prefill.fill(source)
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(fetched(decode, prefill, sink, 32))
            for layer in range(source.layout.num_layers):
                prefill.book.progress(source, layer, 16)
            await until(lambda: bool(sink._covered) and all(sink._covered))
            clock.advance(3.0)
            token = FirstToken(token_id=7, position=0, finish_reason=None, sampled_at_s=3.0)
            prefill.book.finished(source, token)
        assert fetching.result().timing.first_segment_lead_s == 3.0


async def test_a_dead_source_does_not_hold_up_the_releases_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "MAX_CONCURRENT_RELEASES", 1)
    async with instance() as dying, instance() as prefill, instance() as decode:
        for each in (dying, prefill):
            each.prefill(16)
        decode.store.gate.clear()
        first, second = decode.sink(), decode.sink(handoff_id=ID)
        async with asyncio.TaskGroup() as group:
            group.create_task(fetched(decode, dying, first, 16))
            await until(lambda: first.expected_digest is not None)
            await dying.server.stop(grace=None)
            decode.store.gate.set()
        await fetched(decode, prefill, second, 16)
        await until(lambda: bool(prefill.ended))


async def test_a_lease_lost_while_waiting_for_room_is_noticed() -> None:
    async with instance() as prefill, instance() as decode:
        prefill.prefill(16)

        async def never(sink: Sink) -> None:
            prefill.book.release(ID, Fence(0, 9), committed=False)
            await asyncio.Event().wait()

        assert await lost(decode, prefill, decode.sink(), 16, never) is KvLostReason.LEASE
