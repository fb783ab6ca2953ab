"""The Fetch stream's fast path: protobuf's bytes on the wire, without its copies of the payload.

`payload` is the last field of FetchResponse. A writer appends it to the encoded rest; a reader
cuts it out as a memoryview of what gRPC delivered. Both stay what the generated class reads and
writes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from core.limits import KV_FRAME_HEADER_BYTES, MAX_KV_FRAME_BYTES
from rpc.codec import Reader, Undecodable, tolerant, undecodable
from rpc.pb import kv_transfer_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["KvTransfer"].full_name
FETCH = f"/{SERVICE}/Fetch"

_EMPTY = memoryview(b"")
_PAYLOAD_FIELD = pb.FetchResponse.PAYLOAD_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_MAX_FIELDS = 64
"""FetchResponse has two at a time; room for newer peers, none for a message of tiny fields."""


@dataclass(frozen=True, slots=True)
class FetchFrame:
    """A FetchResponse with its payload beside it."""

    message: pb.FetchResponse
    """Its own `payload` is empty."""
    payload: memoryview = _EMPTY


FetchRead: TypeAlias = FetchFrame | Undecodable
FetchCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.FetchRequest, FetchRead]"


def write_frame(message: pb.FetchResponse, payload: memoryview = _EMPTY) -> bytes:
    """The wire bytes; the one copy that gRPC needs, of contiguous payload."""
    if not payload.nbytes:
        return message.SerializeToString()
    head = message.SerializeToString() + _PAYLOAD_TAG + _varint(payload.nbytes)
    return b"".join((head, payload))


def read_frame(data: bytes) -> FetchFrame:
    """Split wire bytes into message and payload. Raises InvalidRequest."""
    if len(data) > MAX_KV_FRAME_BYTES + KV_FRAME_HEADER_BYTES:
        raise undecodable(f"frame of {len(data)} bytes")
    cut = _find_payload(data)
    head = data if cut is None else data[: cut.tag_at] + data[cut.stop :]
    if len(head) > KV_FRAME_HEADER_BYTES:
        raise undecodable(f"frame header of {len(head)} bytes, limit {KV_FRAME_HEADER_BYTES}")
    try:
        message = pb.FetchResponse.FromString(head)
    except DecodeError:
        raise undecodable("frame header that is no FetchResponse") from None
    if cut is None:
        return FetchFrame(message)
    return FetchFrame(message, memoryview(data)[cut.start : cut.stop])


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where the payload field lies: its tag, its first byte, the byte after it."""

    tag_at: int
    start: int
    stop: int


def _find_payload(data: bytes) -> _Cut | None:
    """Walk the top-level fields; groups and repeated payloads, which no writer of ours makes, are
    refused."""
    found: _Cut | None = None
    at, num_fields = 0, 0
    while at < len(data):
        num_fields += 1
        if num_fields > _MAX_FIELDS:
            raise undecodable(f"frame of more than {_MAX_FIELDS} fields")
        tag, start = _read_varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, start = _read_varint(data, start)
            stop = start + size
        elif kind == _VARINT:
            _, stop = _read_varint(data, start)
        elif kind in _FIXED_SIZES:
            stop = start + _FIXED_SIZES[kind]
        else:
            raise undecodable(f"frame field of wire type {kind}")
        if stop > len(data):
            raise undecodable(f"frame cut off at {len(data)} bytes")
        if field == _PAYLOAD_FIELD:
            if found is not None or kind != _BYTES:
                raise undecodable("frame with a damaged payload field")
            found = _Cut(at, start, stop)
        at = stop
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for shift, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise undecodable(f"frame with a damaged number at byte {at}")


_PAYLOAD_TAG = _varint(_PAYLOAD_FIELD << 3 | _BYTES)


FetchRequests: TypeAlias = AsyncIterator[pb.FetchRequest | Undecodable]
FetchMethod: TypeAlias = Callable[[FetchRequests, Any], Awaitable[None]]
RenewMethod: TypeAlias = Callable[[pb.RenewRequest, Any], Awaitable[pb.RenewReply]]
ReleaseMethod: TypeAlias = Callable[[pb.ReleaseRequest, Any], Awaitable[pb.ReleaseReply]]


def add_kv_transfer(
    server: grpc.aio.Server, fetch: FetchMethod, renew: RenewMethod, release: ReleaseMethod
) -> None:
    """Register the service; `fetch` reads tolerantly and writes frames that are bytes already."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Fetch": grpc.stream_stream_rpc_method_handler(
            fetch,
            request_deserializer=tolerant(Reader(pb.FetchRequest)),
            response_serializer=_as_bytes,
        ),
        "Renew": grpc.unary_unary_rpc_method_handler(
            renew,
            request_deserializer=pb.RenewRequest.FromString,
            response_serializer=pb.RenewReply.SerializeToString,
        ),
        "Release": grpc.unary_unary_rpc_method_handler(
            release,
            request_deserializer=pb.ReleaseRequest.FromString,
            response_serializer=pb.ReleaseReply.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _as_bytes(frame: bytes) -> bytes:
    return frame


def fetch_call(channel: grpc.aio.Channel) -> FetchCall:
    """Open a Fetch stream on `channel`."""
    fetch: grpc.aio.StreamStreamMultiCallable[pb.FetchRequest, FetchRead] = channel.stream_stream(
        FETCH,
        request_serializer=pb.FetchRequest.SerializeToString,
        response_deserializer=tolerant(read_frame),
    )
    return fetch()
