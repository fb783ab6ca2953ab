"""Shared memory and its host: belief in nothing a peer says, and nothing left."""

import asyncio
import errno
import fcntl
import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.carriers.contract import CarrierUnusable, Place
from kv_transfer.carriers.shm import MAX_PEER_MEMORIES, ShmCarrier
from kv_transfer.carriers.shm_memory import (
    HEADER_BYTES,
    MAX_SLOT_BYTES,
    MAX_SLOTS,
    OwnMemory,
    PeerMemory,
    meeting_place,
    num_slots_in,
    slot_offset,
)
from rpc.pb import kv_transfer_pb2 as pb
from tests.contract.carriers import SOURCE_ADDRESS
from tests.kv_transfer.shm_support import (
    NOTHING,
    NUM_SLOTS,
    announced,
    attached,
    filled,
    outlet_of,
)

SMALLEST = slot_offset(1)
"""Bytes of memory with one slot."""


@pytest.fixture
def carrier() -> Iterator[ShmCarrier]:
    """Source and sink in one."""
    carrier = ShmCarrier(num_slots=NUM_SLOTS)
    yield carrier
    carrier.close()


# --- belief in nothing ----------------------------------------------------------------------


BAD_PATHS = [
    "",
    "/etc/passwd",
    "/dev/shm/x",
    "/proc/self/fd/3",
    "/proc/1/fd/../../../etc/passwd",
    "/proc/1/fd/3\n",
    "/proc/01/fd/3",
    "/proc/1/fd/03",
    "/proc/\u0661/fd/3",
    "/proc/99999999999/fd/1",
    "/proc/1/mem",
    "x" * 100_000,
]


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_only_a_descriptor_of_a_process_is_opened(carrier: ShmCarrier, path: str) -> None:
    announce = announced(carrier)
    announce.shm.path = path
    await refused(carrier, announce, "is not a path of shared memory")


async def test_a_process_that_never_was_is_refused(carrier: ShmCarrier) -> None:
    announce = announced(carrier)
    announce.shm.path = "/proc/4194305/fd/3"  # above the highest process id of Linux
    await refused(carrier, announce, "does not open")


async def refused(carrier: ShmCarrier, announce: pb.Announce, why: str = ".") -> None:
    inlet, before = carrier.inlet(SOURCE_ADDRESS), set(os.listdir("/proc/self/fd"))
    with pytest.raises(CarrierUnusable, match=why):
        await inlet.attach(announce)
    inlet.close()
    gc.collect()
    # Those of an earlier test may still have been closing.
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("num_bytes", [0, 8, SMALLEST, 4 * MAX_SLOT_BYTES, 2**63, 2**64 - 1])
async def test_memory_of_another_size_is_refused(carrier: ShmCarrier, num_bytes: int) -> None:
    announce = announced(carrier)
    announce.shm.num_bytes = num_bytes
    await refused(carrier, announce)


async def test_memory_with_another_nonce_is_refused(carrier: ShmCarrier) -> None:
    announce = announced(carrier)
    announce.shm.nonce ^= 1
    await refused(carrier, announce)


async def test_memory_of_a_process_that_ended_is_refused(carrier: ShmCarrier) -> None:
    other = ShmCarrier(num_slots=4)
    announce = announced(other)
    other.close()
    await refused(carrier, announce)


@pytest.mark.parametrize("name", ["baton-kv", "another"])
async def test_a_file_that_may_shrink_is_refused(carrier: ShmCarrier, name: str) -> None:
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, SMALLEST)
        shm = pb.SharedMemory(path=f"/proc/{os.getpid()}/fd/{fd}", num_bytes=SMALLEST)
        await refused(carrier, pb.Announce(carrier="shm", shm=shm))
    finally:
        os.close(fd)


async def test_a_pipe_is_not_opened(carrier: ShmCarrier) -> None:
    """It would be read from, or wait for a writer."""
    for fd in os.pipe():
        shm = pb.SharedMemory(path=f"/proc/{os.getpid()}/fd/{fd}", num_bytes=SMALLEST)
        await refused(carrier, pb.Announce(carrier="shm", shm=shm), "is not KV memory")
        os.close(fd)


def test_nobody_can_shrink_the_memory_under_a_sink(carrier: ShmCarrier) -> None:
    with Path(announced(carrier).shm.path).open("r+b") as file, pytest.raises(PermissionError):
        file.truncate(0)


async def test_a_sink_cannot_write(carrier: ShmCarrier) -> None:
    inlet, outlet = await attached(carrier), outlet_of(carrier)
    payload = await inlet.payload(await filled(outlet, 1), NOTHING)
    assert payload is not None
    assert payload.readonly
    outlet.close()
    inlet.close()


U64 = st.integers(0, 2**64 - 1)


@given(
    num_bytes=st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1)),
    offset=st.one_of(U64, st.sampled_from([slot_offset(slot) for slot in range(6)])),
    generation=st.one_of(U64, st.integers(0, 3)),
)
def test_no_header_reads_outside_a_filled_slot(
    num_bytes: int, offset: int, generation: int
) -> None:
    asyncio.run(read_wildly(num_bytes, offset, generation))


async def read_wildly(num_bytes: int, offset: int, generation: int) -> None:
    carrier = ShmCarrier(num_slots=4)
    inlet, outlet = await attached(carrier), outlet_of(carrier)
    true = await filled(outlet, 7)
    header = pb.SegmentHeader(num_bytes=num_bytes, offset=offset, generation=generation)
    payload = await inlet.payload(header, NOTHING)
    in_slot = (offset - HEADER_BYTES) % MAX_SLOT_BYTES == 0
    if payload is not None:
        assert in_slot
        assert offset < slot_offset(4)
        assert payload.nbytes == num_bytes <= MAX_SLOT_BYTES
        assert generation == (1 if offset == true.offset else 0)
    assert inlet.is_intact(header) == (payload is not None)
    outlet.close()
    inlet.close()
    carrier.close()


@pytest.mark.parametrize("num_slots", [1, 16, MAX_SLOTS])
def test_sizes_say_how_many_slots(num_slots: int) -> None:
    assert num_slots_in(slot_offset(num_slots)) == num_slots
    assert num_slots_in(slot_offset(num_slots) - 1) == 0
    assert num_slots_in(slot_offset(MAX_SLOTS + 1)) == 0


# --- what the host gives --------------------------------------------------------------------


def mapped() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:baton-kv")


def taken_bytes(path: str) -> int:
    """What a file has of the host's memory."""
    return os.stat(path).st_blocks * 512


async def test_nothing_is_taken_before_a_sink_asks(carrier: ShmCarrier) -> None:
    assert mapped() == 0
    path = announced(carrier).shm.path
    assert mapped() == 1
    assert taken_bytes(path) <= mmap.PAGESIZE, "only the header's page"
    outlet = outlet_of(carrier)
    await filled(outlet, 1, num_bytes=3 * mmap.PAGESIZE)
    assert taken_bytes(path) == 4 * mmap.PAGESIZE
    outlet.close()


async def test_a_sink_maps_a_source_once_and_forgets_it_when_it_dies(carrier: ShmCarrier) -> None:
    source = ShmCarrier(num_slots=1)
    announce = announced(source)
    inlets = [carrier.inlet(SOURCE_ADDRESS), carrier.inlet(SOURCE_ADDRESS)]
    for inlet in inlets:
        await inlet.attach(announce)
        assert mapped() == 2
    source.close()
    assert mapped() == 1
    for inlet in inlets:
        inlet.close()
    assert mapped() == 0


async def test_few_sources_stay_mapped(carrier: ShmCarrier) -> None:
    sources = [ShmCarrier(num_slots=1) for _ in range(MAX_PEER_MEMORIES + 3)]
    oldest = carrier.inlet(SOURCE_ADDRESS)
    await oldest.attach(announced(sources[0]))
    for source in sources:
        inlet = carrier.inlet(SOURCE_ADDRESS)
        await inlet.attach(announced(source))
        inlet.close()
    assert mapped() == len(sources) + MAX_PEER_MEMORIES + 1, "and the one still read"
    header = await filled(outlet := outlet_of(sources[0]), 9)
    payload = await oldest.payload(header, NOTHING)
    assert payload is not None
    assert bytes(payload) == b"\t" * 100
    del payload
    outlet.close()
    oldest.close()
    assert mapped() == len(sources) + MAX_PEER_MEMORIES
    carrier.close()
    for source in sources:
        source.close()
    assert mapped() == 0


async def test_a_closed_carriers_memory_lives_while_it_is_read() -> None:
    carrier = ShmCarrier(num_slots=1)
    inlet, outlet = await attached(carrier), outlet_of(carrier)
    payload: memoryview | None = await inlet.payload(await filled(outlet, 5), NOTHING)
    outlet.close()
    carrier.close()
    carrier.close()
    assert payload is not None
    assert bytes(payload[:3]) == b"\x05\x05\x05"
    inlet.close()
    del payload
    assert mapped() == 0


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "fcntl", "mmap"])
def test_a_host_that_gives_no_memory_makes_it_unusable(
    carrier: ShmCarrier, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    owner = {"fcntl": fcntl, "mmap": mmap}.get(call, os)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(owner, call, fail)
        with pytest.raises(CarrierUnusable, match="no memory"):
            outlet_of(carrier)
    assert len(os.listdir("/proc/self/fd")) == before
    assert outlet_of(carrier) is not None, "it may have some later"


async def test_a_host_that_is_full_fails_a_place_and_not_the_process(
    carrier: ShmCarrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    outlet = outlet_of(carrier)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", fail)
        with pytest.raises(CarrierUnusable, match="full"):
            await outlet.place(100)
    assert carrier._pool.num_free == 4
    assert isinstance(await outlet.place(100), Place)
    outlet.close()


@pytest.mark.parametrize("num_bytes", [0, MAX_SLOT_BYTES + 1])
async def test_a_segment_must_fit_a_slot(carrier: ShmCarrier, num_bytes: int) -> None:
    outlet = outlet_of(carrier)
    with pytest.raises(ValueError, match="segment of"):
        await outlet.place(num_bytes)
    assert carrier._pool.num_free == 4


def test_a_host_without_it_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meeting_place() is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", lambda _: "4711")  # a /proc of other processes
        assert meeting_place() is None
    with monkeypatch.context() as patched:
        patched.delattr(os, "memfd_create")
        assert meeting_place() is None
        carrier = ShmCarrier()
        assert carrier.offer() is None
        with pytest.raises(CarrierUnusable):
            carrier.outlet(pb.CarrierOffer(carrier="shm"), "sink")


@pytest.mark.parametrize("num_slots", [0, MAX_SLOTS + 1])
def test_slots_must_fit_the_header(num_slots: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        OwnMemory(num_slots)


def test_generations_of_slots_do_not_touch() -> None:
    memory = OwnMemory(MAX_SLOTS)
    view = PeerMemory(memory.where())
    for slot in range(MAX_SLOTS):
        for _ in range(slot):
            memory.refill(slot, 1)
    assert [view.generation(slot) for slot in range(MAX_SLOTS)] == list(range(MAX_SLOTS))
    assert num_slots_in(memory.where().num_bytes) == MAX_SLOTS
    memory.close()
