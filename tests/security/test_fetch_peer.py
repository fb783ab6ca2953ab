"""Both ends of a Fetch, each facing a peer that lies.

CVE-2026-94623: counts of blocks that differ at both ends ended the decode engine.
CVE-2026-103764: a peer's address and size were read and written, whatever memory they named.
CVE-2026-105754, CVE-2026-111392: a caller's hash stood for content that it was not of.
"""

import asyncio
import os
from contextlib import closing, suppress
from dataclasses import replace

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.capability import Capabilities, Grant, Purpose
from core.ids import HandoffId
from core.prefix import KEY_BYTES
from core.request import Fence
from core.work import KvLostReason, Peer
from kv_transfer.carriers import shm_memory
from kv_transfer.carriers.contract import Carrier
from kv_transfer.carriers.shm import ShmCarrier
from kv_transfer.carriers.shm_memory import slot_offset
from kv_transfer.carriers.torchdist import TorchDistCarrier
from rpc.dial import dial
from rpc.kv_wire import FETCH, read_frame, write_frame
from rpc.pb import generation_pb2, workers_pb2
from rpc.pb import kv_transfer_pb2 as pb
from rpc.pb.types_pb2 import Fence as PbFence
from tests.deploy.instances import kv_source, work
from tests.kv_transfer import test_service
from tests.kv_transfer.support import (
    CAPABILITIES,
    ID,
    INSTANCE_ID,
    NUM_TOKENS,
    QUICK,
    SMALL,
    Instance,
    Tamper,
    fetched,
    instance,
    leave,
    lost,
    pair,
    until,
)
from tests.security.fields import fields
from tests.security.support import attacked, decoy


async def assert_no_leak(prefill: Instance, decode: Instance) -> None:
    """Of either, as soon as the stream has ended at the source too."""
    await until(lambda: not prefill.book.num_sources + prefill.book.num_fetches)
    prefill.assert_no_leak()
    decode.assert_no_leak()


# --- leave ------------------------------------------------------------------------------------

GOOD = Grant(
    purpose=Purpose.HANDOFF,
    handoff_id=ID,
    fence=Fence(0, 1),
    source_id=INSTANCE_ID,
    source_address="here:1",
    fetcher_id=INSTANCE_ID,
)
STRANGER = Capabilities.of_nobody(b"\x01" * KEY_BYTES, own=Peer(INSTANCE_ID, "here:1"))


def flipped(at: int) -> bytes:
    token = leave()
    return token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]


NO_LEAVE: list[tuple[str, bytes]] = [
    ("none", b""),
    ("made up", b"x" * 41),
    ("with another key", STRANGER.sign_for(GOOD, 60.0)),
    ("one bit of the MAC", flipped(40)),
    ("one bit of the expiry", flipped(1)),
    ("longer", leave() + b"x"),
    ("endless", leave() * 10_000),
    ("ended", CAPABILITIES.sign_for(GOOD, -1e6)),
    ("of another request", leave(HandoffId("other/0"))),
    ("of another attempt", leave(fence=Fence(0, 2))),
    ("of another epoch", leave(fence=Fence(1, 1))),
    ("of a prefix", leave(purpose=Purpose.PREFIX)),
    ("of another source", CAPABILITIES.sign_for(replace(GOOD, source_id="other"), 60.0)),
    ("of another address", CAPABILITIES.sign_for(replace(GOOD, source_address="b:1"), 60.0)),
    ("of another fetcher", CAPABILITIES.sign_for(replace(GOOD, fetcher_id="other"), 60.0)),
]


@pytest.mark.parametrize("token", [case[1] for case in NO_LEAVE], ids=[c[0] for c in NO_LEAVE])
async def test_without_leave_nothing_is_sent_renewed_or_released(token: bytes) -> None:
    """Whoever knows all but the capability learns not even whether the handoff is here."""
    shown = pb.Leave(fetcher_id=INSTANCE_ID, capability=token)
    fence = test_service.OPEN.fence
    renew = pb.RenewRequest(handoff_id=ID, fence=fence, leave=shown)
    release = pb.ReleaseRequest(handoff_id=ID, fence=fence, leave=shown, committed=True)
    async with pair() as (prefill, decode, kv):
        async with dial(prefill.address) as channel, asyncio.timeout(10):
            opening = test_service.opening(capability=token)
            frames, code = await opened(channel, opening)
            assert (frames, code) == (0, "PERMISSION_DENIED")
            for method, request in (("Renew", renew), ("Release", release)):
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"/baton.v1.KvTransfer/{method}"
                )
                code = (await call(request.SerializeToString()).code()).name
                assert code == "PERMISSION_DENIED"
        sink = decode.sink()
        await fetched(decode, prefill, sink, NUM_TOKENS)
        assert decode.take(sink) == kv


async def opened(channel: grpc.aio.Channel, opening: bytes) -> tuple[int, str]:
    """How many frames an opening got, and how its stream ended."""
    call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(FETCH)()
    await call.write(opening)
    num_frames = 0
    try:
        while await call.read() is not grpc.aio.EOF:
            num_frames += 1
    except grpc.aio.AioRpcError as error:
        return num_frames, error.code().name
    return num_frames, (await call.code()).name


async def test_what_was_fetched_is_not_fetched_again_with_the_same_leave() -> None:
    """A replay of a whole Fetch, word by word."""
    async with pair() as (prefill, decode, kv):
        sink = decode.sink()
        await fetched(decode, prefill, sink, NUM_TOKENS)
        assert decode.take(sink) == kv
        await until(lambda: not prefill.book.num_sources)
        async with dial(prefill.address) as channel, asyncio.timeout(10):
            frames, code = await opened(channel, test_service.opening())
        assert (frames, code) == (0, "ABORTED")


# --- CVE-2026-94623 ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(num_waited_for=st.integers(1, 400), num_computed=st.integers(1, 300))
def test_cve_2026_94623_prompts_of_any_two_lengths(num_waited_for: int, num_computed: int) -> None:
    async def hand_off() -> None:
        async with instance() as prefill, instance() as decode:
            kv, sink = prefill.prefill(num_computed), decode.sink()
            if num_waited_for != num_computed:
                assert await lost(decode, prefill, sink, num_waited_for) is KvLostReason.LEASE
                sink.retarget(Fence(0, 2))
            await fetched(decode, prefill, sink, num_computed)
            assert decode.take(sink) == kv
            await assert_no_leak(prefill, decode)

    asyncio.run(hand_off())


@pytest.mark.parametrize("block_size", [1, 3, 5, 16, 32, 48])
async def test_cve_2026_94623_blocks_of_any_two_sizes(block_size: int) -> None:
    layout = replace(SMALL, block_size=block_size)
    async with instance() as prefill, instance(layout) as decode:
        kv, sink = prefill.prefill(50), decode.sink()
        await fetched(decode, prefill, sink, 50)
        assert decode.take(sink) == kv
        await assert_no_leak(prefill, decode)


# --- CVE-2026-103764 --------------------------------------------------------------------------

GROUP = "a" * 32 + ".1"


def announcing(**where: object) -> Tamper:
    """A source that says that its payloads are there, and sends them inline all the same."""

    def tamper(frame: bytes) -> bytes:
        found = read_frame(frame)
        if not found.message.HasField("announce"):
            return frame
        announce = pb.Announce()
        announce.CopyFrom(found.message.announce)
        for name, value in where.items():
            if isinstance(value, str):
                setattr(announce, name, value)
            else:
                getattr(announce, name).CopyFrom(value)
        return write_frame(pb.FetchResponse(announce=announce))

    return tamper


SIZE = slot_offset(4)
NAMED = [
    *("/etc/passwd", "/proc/self/mem", f"/proc/{os.getpid()}/mem", "/dev/zero", "/dev/shm/a"),
    *("/proc/self/fd/0", f"/proc/{os.getpid()}/fd/0/../../environ", "", "a" * 10_000),
    *("0x7f0000000000", "\x00", f"/proc/{os.getpid()}/maps", "/proc/1/exe"),
]


@pytest.mark.parametrize("path", NAMED, ids=[repr(path[:40]) for path in NAMED])
async def test_cve_2026_103764_a_path_of_a_peers_choice_is_not_opened(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(shm_memory, "_map", lambda *_: opened.append(path))
    hostile = announcing(carrier="shm", shm=pb.SharedMemory(path=path, num_bytes=SIZE, nonce=1))
    with closing(ShmCarrier(num_slots=4)) as carrier:
        assert await over(hostile, carrier)
    assert not opened


async def over(hostile: Tamper, carrier: Carrier) -> bool:
    """Whether a handoff whose source lies about its memory was right by other means."""
    async with (
        instance(tamper=hostile) as prefill,
        instance(carriers=[carrier], config=replace(QUICK, carrier=carrier.name)) as decode,
    ):
        kv, sink = prefill.prefill(NUM_TOKENS), decode.sink()
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
        assert result.timing.carrier == "grpc"
        is_right = decode.take(sink) == kv
        await assert_no_leak(prefill, decode)
    return is_right


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "169.254.169.254", "[::1]"])
async def test_cve_2026_103764_no_group_is_joined_at_another_host(host: str) -> None:
    with decoy() as trap, closing(TorchDistCarrier("127.0.0.1", 5.0)) as carrier:
        port = trap.address.rpartition(":")[2]
        group = pb.PairGroup(group_id=GROUP, store_address=f"{host}:{port}")
        assert await over(announcing(carrier="torchdist", pair_group=group), carrier)


def test_cve_2026_103764_no_message_names_memory_but_that_of_a_carrier() -> None:
    """Words for memory or places, in all that instances say to each other."""
    words = ("addr", "ptr", "pointer", "path", "rkey", "handle", "offset", "device")
    found = {
        f"{message.name}.{field.name}"
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if any(word in field.name for word in words)
    }
    # An offset is into the memory that was announced, and checked against its slots.
    assert found == {"SharedMemory.path", "PairGroup.store_address", "SegmentHeader.offset"}


# --- CVE-2026-105754 --------------------------------------------------------------------------


def test_cve_2026_105754_nobody_sends_the_name_of_content() -> None:
    requests = [
        workers_pb2.DecodeRequest.DESCRIPTOR,
        workers_pb2.PrefillRequest.DESCRIPTOR,
        pb.FetchRequest.DESCRIPTOR,
        *(
            m.input_type
            for s in generation_pb2.DESCRIPTOR.services_by_name.values()
            for m in s.methods
        ),
    ]
    words = ("hash", "digest", "block_name", "cache_key", "uuid")
    named = [path for request in requests for path, _ in fields(request)]
    assert not [path for path in named if any(word in path[-1] for word in words)]


PROMPT = tuple(range(1, 18))
ASKED: list[tuple[str, tuple[int, ...], str, int]] = [
    # id                       tokens                    tenant     tokens lent
    ("its own", PROMPT, "a", 16),
    ("another tenant's", PROMPT, "b", 0),
    ("nobody's", PROMPT, "", 0),
    ("another first token", (99, *PROMPT[1:]), "a", 0),
    ("another sixth token", (*PROMPT[:5], 99, *PROMPT[6:]), "a", 4),
]


@pytest.mark.parametrize(
    ("token_ids", "tenant", "num_lent"), [case[1:] for case in ASKED], ids=[c[0] for c in ASKED]
)
async def test_cve_2026_105754_only_who_knows_the_content_is_lent_it(
    token_ids: tuple[int, ...], tenant: str, num_lent: int
) -> None:
    async with attacked() as two:
        request = work(PROMPT, tenant="a", handoff_id="first/0")
        await two.serve(request)
        asking = work(handoff_id="asking/0")
        opening = pb.FetchOpen(
            handoff_id=asking.handoff_id,
            fence=PbFence(epoch=0, attempt=1),
            fingerprint=asking.fingerprint,
            protocol_version=test_service.OPEN.protocol_version,
            max_segment_bytes=4096,
            wire_format="stored",
            fetcher_id=INSTANCE_ID,
            capability=kv_source(two.decode, asking, Purpose.PREFIX).capability,
            prefix=pb.PrefixWanted(token_ids=token_ids, tenant=tenant, max_tokens=len(token_ids)),
        )
        message = pb.FetchRequest(open=opening).SerializeToString()
        async with dial(two.decode.address) as channel, asyncio.timeout(10):
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(FETCH)()
            await call.write(message)
            assert await lent(call) == num_lent


async def lent(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> int:
    """How many tokens are announced; 0 when none are here."""
    frame: object = grpc.aio.EOF
    with suppress(grpc.aio.AioRpcError):
        frame = await call.read()
    if not isinstance(frame, bytes):
        assert (await call.code()).name == "NOT_FOUND"
        return 0
    call.cancel()
    return pb.FetchResponse.FromString(frame).announce.num_tokens
