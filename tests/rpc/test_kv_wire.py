"""The fast path writes and reads the very bytes of protobuf, and survives all others."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidRequest
from core.limits import KV_FRAME_HEADER_BYTES, MAX_KV_FRAME_BYTES
from rpc.codec import Undecodable, tolerant
from rpc.kv_wire import read_frame, write_frame
from rpc.pb import kv_transfer_pb2 as pb

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
segments = st.builds(
    pb.SegmentHeader,
    **{f.name: u64 if f.name == "checksum" else u32 for f in pb.SegmentHeader.DESCRIPTOR.fields},
)
announces = st.builds(pb.Announce, num_tokens=u32, dtype=st.text(), lease_ttl_s=st.floats())
messages = st.one_of(
    st.builds(pb.FetchResponse, segment=segments),
    st.builds(pb.FetchResponse, announce=announces),
    st.just(pb.FetchResponse()),
)
payloads = st.binary(max_size=300)


@given(message=messages, payload=payloads)
def test_protobuf_reads_what_we_write(message: pb.FetchResponse, payload: bytes) -> None:
    data = write_frame(message, memoryview(payload))
    whole = pb.FetchResponse()
    whole.CopyFrom(message)
    whole.payload = payload
    assert data == whole.SerializeToString()
    assert pb.FetchResponse.FromString(data).payload == payload


@given(message=messages, payload=payloads)
def test_we_read_what_protobuf_writes(message: pb.FetchResponse, payload: bytes) -> None:
    whole = pb.FetchResponse()
    whole.CopyFrom(message)
    whole.payload = payload
    frame = read_frame(whole.SerializeToString())
    assert bytes(frame.payload) == payload
    assert frame.message.payload == b""
    assert frame.message.SerializeToString() == message.SerializeToString()


def test_a_large_payload_is_cut_out_not_copied() -> None:
    payload = bytes(range(256)) * (MAX_KV_FRAME_BYTES // 256)
    data = write_frame(pb.FetchResponse(segment=pb.SegmentHeader(index=1)), memoryview(payload))
    frame = read_frame(data)
    assert frame.payload.obj is data
    assert frame.payload == payload


def test_fields_of_newer_peers_may_follow() -> None:
    data = write_frame(pb.FetchResponse(), memoryview(b"kv")) + b"\xa0\x06\x01"  # field 100
    assert bytes(read_frame(data).payload) == b"kv"


@settings(max_examples=500)
@given(data=st.binary(max_size=200))
def test_garbage_is_an_error_of_ours(data: bytes) -> None:
    try:
        frame = read_frame(data)
    except InvalidRequest:
        return
    assert pb.FetchResponse.FromString(data).payload == bytes(frame.payload)


@settings(max_examples=300)
@given(message=messages, payload=payloads, at=st.integers(0, 400), bit=st.integers(0, 7))
def test_flips_and_cuts_never_crash(
    message: pb.FetchResponse, payload: bytes, at: int, bit: int
) -> None:
    data = bytearray(write_frame(message, memoryview(payload)))
    for damaged in (bytes(data[:at]), bytes(_flipped(data, at, bit))):
        result = tolerant(read_frame)(damaged)
        if not isinstance(result, Undecodable):
            assert pb.FetchResponse.FromString(damaged).payload == bytes(result.payload)


def _flipped(data: bytearray, at: int, bit: int) -> bytearray:
    if data:
        data[at % len(data)] ^= 1 << bit
    return data


HOSTILE = [
    ("over the limit", bytes(MAX_KV_FRAME_BYTES + KV_FRAME_HEADER_BYTES + 1), "frame of"),
    ("a payload longer than the frame", b"\x7a\xff\xff\xff\xff\x0f", "cut off"),
    ("an endless number", b"\x7a" + b"\xff" * 20, "damaged number"),
    ("two payloads", b"\x7a\x01a\x7a\x01b", "damaged payload field"),
    ("a payload of another type", b"\x78\x01", "damaged payload field"),
    ("a group", b"\x0b\x0c", "wire type 3"),
    ("a thousand fields", b"\xa0\x06\x01" * 1000, "more than 64 fields"),
    ("a header as large as a payload", b"\x0a\x80\x80\x08" + bytes(0x20000), "header of"),
    ("a header that is none", b"\x0a\x02\xff\xff", "no FetchResponse"),
]


@pytest.mark.parametrize(("data", "match"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_hostile_frames(data: bytes, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        read_frame(data)


def test_damaged_text_is_found_by_protobuf() -> None:
    # Announce.dtype of bytes that are no UTF-8.
    data = b"\x0a\x04\x2a\x02\xff\xfe"
    with pytest.raises(DecodeError):
        pb.FetchResponse.FromString(data)
    with pytest.raises(InvalidRequest):
        read_frame(data)
