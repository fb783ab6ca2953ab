"""CVE-2026-94626: a number of a peer's choice, taken at its word, ended the engine for memory.

Every number of every message between routers and instances, and between instances, is set to the
ends of what the wire can say, in an exchange that is right but for it.
"""

import asyncio
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import grpc.aio
import pytest
from google.protobuf.message import Message

from core.capability import Purpose
from core.ids import HandoffId
from core.work import PROTOCOL_VERSION, WorkRequest
from kv_transfer.errors import KvLost
from rpc.dial import dial
from rpc.kv_wire import FETCH, read_frame
from rpc.pb import kv_transfer_pb2 as pb
from rpc.pb import workers_pb2
from tests.deploy.instances import (
    decode_request,
    prefill_request,
    retarget_request,
    stop_request,
    work,
)
from tests.kv_transfer import test_service
from tests.kv_transfer.support import ID, INSTANCE_ID, NUM_TOKENS, fetched, leave, pair
from tests.security.fields import Number, Path, changed, numbers
from tests.security.support import Pair, attacked, status_of

MAX_PEAK_BYTES = 64 * 2**20
"""Taken for one hostile message, at most: what a few honest segments take."""


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Nothing in the block takes memory by a stranger's number."""
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_PEAK_BYTES


def cases(message: type[Message], *roots: str) -> list[tuple[Path, Number]]:
    """Each number below these fields, or of all, with each value."""
    return [
        (path, value)
        for path, values in numbers(message)
        if not roots or path[0] in roots
        for value in values
    ]


def names(of: list[tuple[Path, Number]]) -> list[str]:
    return [f"{'.'.join(path)}={value}" for path, value in of]


# --- a reader's, to a source ------------------------------------------------------------------

ASKED = cases(pb.FetchRequest)
PREFIX_ID = HandoffId("prefix/0")


def good(root: str, *, is_of_prefix: bool) -> pb.FetchRequest:
    """A message that a source accepts."""
    if root != "open":
        return {
            "credit": pb.FetchRequest(credit=pb.Credit(num_tokens=NUM_TOKENS)),
            "refetch": pb.FetchRequest(refetch=pb.Refetch(index=0)),
            "emptied": pb.FetchRequest(emptied=pb.Emptied(num_segments=1)),
        }[root]
    opening = pb.FetchOpen()
    opening.CopyFrom(test_service.OPEN)
    if is_of_prefix:
        opening.handoff_id = PREFIX_ID
        opening.capability = leave(PREFIX_ID, purpose=Purpose.PREFIX)
        opening.prefix.CopyFrom(pb.PrefixWanted(token_ids=range(32), max_tokens=32))
    return pb.FetchRequest(open=opening)


@pytest.mark.parametrize(("path", "value"), ASKED, ids=names(ASKED))
async def test_what_a_reader_says(path: Path, value: Number) -> None:
    bad = changed(good(path[0], is_of_prefix="prefix" in path), path, value)
    first = () if path[0] == "open" else (good("open", is_of_prefix=False).SerializeToString(),)
    async with pair() as (prefill, decode, kv):
        with bounded_memory():
            async with dial(prefill.address) as channel, asyncio.timeout(10):
                call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(FETCH)()
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    for message in (*first, bad):
                        await call.write(message)
                    await call.done_writing()
                    while await call.read() is not grpc.aio.EOF:
                        pass
            # The lease outlives a reader who talks nonsense.
            sink = decode.sink()
            await fetched(decode, prefill, sink, NUM_TOKENS)
        assert decode.take(sink) == kv


LEASES = [
    *((pb.RenewRequest, path, value) for path, value in cases(pb.RenewRequest)),
    *((pb.ReleaseRequest, path, value) for path, value in cases(pb.ReleaseRequest)),
]


@pytest.mark.parametrize(
    ("kind", "path", "value"), LEASES, ids=names([case[1:] for case in LEASES])
)
async def test_what_a_holder_of_a_lease_says(
    kind: type[Message], path: Path, value: Number
) -> None:
    fields = {
        "handoff_id": ID,
        "fence": test_service.OPEN.fence,
        "leave": pb.Leave(fetcher_id=INSTANCE_ID, capability=leave()),
    }
    method = kind.DESCRIPTOR.name.removesuffix("Request")
    async with pair() as (prefill, decode, kv):
        async with dial(prefill.address) as channel, asyncio.timeout(10):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/baton.v1.KvTransfer/{method}"
            )
            bad = changed(kind(**fields), path, value)
            is_same = bad == kind(**fields).SerializeToString()
            code = await call(bad).code()
        assert (code.name in {"INVALID_ARGUMENT", "PERMISSION_DENIED"}) is not is_same
        if not is_same or kind is pb.RenewRequest:
            sink = decode.sink()
            await fetched(decode, prefill, sink, NUM_TOKENS)
            assert decode.take(sink) == kv


# --- a source's, to a reader ------------------------------------------------------------------

ANSWERED = cases(pb.FetchResponse)


@pytest.mark.parametrize(("path", "value"), ANSWERED, ids=names(ANSWERED))
async def test_what_a_source_says(path: Path, value: Number) -> None:
    """Each time: the right KV, or none of it, and what came of it is said with a type."""

    def tamper(frame: bytes) -> bytes:
        found = read_frame(frame)
        if found.message.WhichOneof("message") != path[0]:
            return frame
        whole = pb.FetchResponse()
        whole.CopyFrom(found.message)
        whole.payload = bytes(found.payload)
        return changed(whole, path, value)

    async with pair(tamper) as (prefill, decode, kv):
        sink = decode.sink()
        try:
            with bounded_memory():
                await fetched(decode, prefill, sink, NUM_TOKENS)
        except KvLost:
            sink.stop()
        else:
            assert decode.take(sink) == kv


# --- a router's, to instances -----------------------------------------------------------------

WORK = work(forced=(50,))
METHODS: dict[str, type[Message]] = {
    "Decode": workers_pb2.DecodeRequest,
    "Prefill": workers_pb2.PrefillRequest,
    "Retarget": workers_pb2.RetargetRequest,
    "Stop": workers_pb2.StopRequest,
    "Subscribe": workers_pb2.SubscribeRequest,
}
ROUTED: list[tuple[str, type[Message], Path, tuple[Number, ...]]] = [
    (name, kind, path, values) for name, kind in METHODS.items() for path, values in numbers(kind)
]
TYPED = {
    *("OK", "INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION"),
    *("ABORTED", "NOT_FOUND", "DEADLINE_EXCEEDED"),
}
"""Not INTERNAL and not UNKNOWN, which are those of faults of ours."""


@pytest.mark.parametrize(
    ("method", "kind", "path", "values"),
    ROUTED,
    ids=[f"{method} {'.'.join(path)}" for method, _, path, _ in ROUTED],
)
async def test_what_a_router_says(
    method: str, kind: type[Message], path: Path, values: tuple[Number, ...]
) -> None:
    async with attacked() as two:
        for number, value in enumerate(values):
            request = replace(WORK, handoff_id=HandoffId(f"hostile-{number}/0"))
            bad = kind.FromString(changed(routed(method, request, two), path, value))
            assert await said(method, bad, two) in TYPED
            await two.decode.decode.Stop(stop_request(request))


def routed(method: str, request: WorkRequest, two: Pair) -> Message:
    """A message that its instance accepts."""
    match method:
        case "Decode":
            return decode_request(request, two.prefill)
        case "Prefill":
            return prefill_request(
                request, only_first_token=True, cached_at=two.decode, num_cached_tokens=4
            )
        case "Retarget":
            return retarget_request(request, two.prefill)
        case "Stop":
            return stop_request(request)
    acks = [workers_pb2.Ack(handoff_id=request.handoff_id, next_position=1)]
    return workers_pb2.SubscribeRequest(
        router_id="other", protocol_version=PROTOCOL_VERSION, acks=acks
    )


async def said(method: str, message: Message, two: Pair) -> str:
    """How the instance took it, by the name of a status."""
    if method == "Prefill":
        assert isinstance(message, workers_pb2.PrefillRequest)
        return await status_of(two.prefill.prefill.Prefill(message))
    if not isinstance(message, workers_pb2.SubscribeRequest):
        return await status_of(getattr(two.decode.decode, method)(message))
    call = two.decode.decode.Subscribe()
    async with asyncio.timeout(10):
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(message)
            await call.read()
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        return str((await call.code()).name)
