"""A source's shared memory, and a sink's view of it: nameless, so that no crash leaves it behind.

It is a memfd, which a process of the same host opens through the source's entry in /proc. The
first page holds a nonce and one generation word for each slot; the slots follow.

    0        64            128           ...   4096         4096 + 4 MiB
    nonce    generation 0  generation 1  ...   slot 0       slot 1         ...
"""

import fcntl
import mmap
import os
import re
import secrets
from pathlib import Path

from core.limits import MAX_KV_FRAME_BYTES
from kv_transfer.carriers.contract import CarrierUnusable
from rpc.pb import kv_transfer_pb2 as pb

MAX_SLOT_BYTES = MAX_KV_FRAME_BYTES
"""Room for any segment."""
HEADER_BYTES = 4096
"""A page, so that slots are aligned to pages too."""
_LINE_BYTES = 64
"""Each word on a cache line of its own: raising one does not slow readers of the others."""
_WORD_BYTES = 8
MAX_SLOTS = HEADER_BYTES // _LINE_BYTES - 1
_NAME = "baton-kv"
_FD_PATH = re.compile(r"/proc/[1-9][0-9]{0,9}/fd/(0|[1-9][0-9]{0,8})", re.ASCII)


def meeting_place() -> str | None:
    """What two processes have in common when one can open the other's memory: boot, namespaces
    and user. None where there is no memfd or no /proc that knows this process by its own id."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        pids, users = os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/user")
    except OSError:
        return None
    return f"{boot}/{pids}/{users}/{os.getuid()}"


def num_slots_in(num_bytes: int) -> int:
    """How many slots memory of that size has; 0 when it is no size of such memory."""
    num_slots, rest = divmod(num_bytes - HEADER_BYTES, MAX_SLOT_BYTES)
    return num_slots if not rest and 0 < num_slots <= MAX_SLOTS else 0


def slot_offset(slot: int) -> int:
    """Where it begins, in bytes."""
    return HEADER_BYTES + slot * MAX_SLOT_BYTES


class OwnMemory:
    """What a source fills. Its pages are taken from the host as slots are first used."""

    def __init__(self, num_slots: int) -> None:
        """Raises OSError."""
        if not 0 < num_slots <= MAX_SLOTS:
            raise ValueError(f"{num_slots} slots, limit {MAX_SLOTS}")
        self._num_bytes = slot_offset(num_slots)
        self._taken_bytes = [0] * num_slots
        self._fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, self._num_bytes)
            # Of fixed size for good: a sink that reads beyond a shrunk file's end would be killed.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            self._bytes = memoryview(mmap.mmap(self._fd, self._num_bytes))
        except BaseException:
            os.close(self._fd)
            raise
        self._words = self._bytes[:HEADER_BYTES].cast("Q")
        self._words[0] = secrets.randbits(64)
        self._path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def where(self) -> pb.SharedMemory:
        """How a sink finds it."""
        return pb.SharedMemory(
            path=self._path, num_bytes=self._num_bytes, nonce=int(self._words[0])
        )

    def refill(self, slot: int, num_bytes: int) -> tuple[memoryview, int]:
        """Room for a payload in `slot`, and its new generation. Raises CarrierUnusable when the
        host has no memory."""
        if not 0 < num_bytes <= MAX_SLOT_BYTES:
            raise ValueError(f"segment of {num_bytes} bytes, limit {MAX_SLOT_BYTES}")
        start = slot_offset(slot)
        self._take_pages(slot, num_bytes)
        # Before the first new byte, so that a sink which still reads the old ones, and may have
        # met a new one, finds another number afterwards. See PeerMemory.generation.
        generation = int(self._words[_word_of(slot)]) + 1
        self._words[_word_of(slot)] = generation
        return self._bytes[start : start + num_bytes], generation

    def close(self) -> None:
        """Nobody can open it any more; it is gone with the last view of it."""
        os.close(self._fd)
        self._words = self._bytes = memoryview(b"")

    def _take_pages(self, slot: int, num_bytes: int) -> None:
        """Where the host is out of memory this is an error, and writing to a page would be the
        process's end."""
        if num_bytes <= self._taken_bytes[slot]:
            return
        try:
            os.posix_fallocate(self._fd, slot_offset(slot), num_bytes)
        except OSError as error:
            raise CarrierUnusable(f"no shared memory for {num_bytes} bytes: {error}") from None
        self._taken_bytes[slot] = num_bytes


class PeerMemory:
    """A source's memory, mapped read-only. It is unmapped with the last view of it."""

    def __init__(self, where: pb.SharedMemory) -> None:
        """Open what a source announced, which is believed in nothing. Raises CarrierUnusable."""
        self.num_slots = num_slots_in(where.num_bytes)
        if not self.num_slots:
            raise CarrierUnusable(f"announced memory of {where.num_bytes} bytes")
        self._path = where.path
        try:
            fd = _open(where.path)
            try:
                self._inode = os.fstat(fd).st_ino
                self._bytes = _map(fd, where.num_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            # Its process has ended, or this one may not look into it.
            raise CarrierUnusable(f"{where.path[:64]!r} does not open: {error.strerror}") from None
        self._words = self._bytes[:HEADER_BYTES].cast("Q")
        if self._words[0] != where.nonce:
            raise CarrierUnusable(f"{where.path} is not the memory that was announced")

    @property
    def is_orphan(self) -> bool:
        """Its source has closed it or died: it only takes memory from the host."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except OSError:
            return True

    def generation(self, slot: int) -> int:
        """How often `slot` was begun to be filled.

        Read after a copy out of the slot, an unchanged number says that no byte of the copy is
        newer than it: who writes raises the number first. Raising and writing, as copying and
        reading the number, are ordered for other processors too, though nothing here is atomic:
        between them the work goes from the event loop to a copy thread, or back, through a lock.
        A word is aligned, so it is read whole.
        """
        return int(self._words[_word_of(slot)])

    def payload(self, slot: int, num_bytes: int) -> memoryview:
        """The first bytes of `slot`, read-only."""
        start = slot_offset(slot)
        return self._bytes[start : start + num_bytes]


def _open(path: str) -> int:
    # Nothing but a descriptor of a process: whatever else a peer names is not even looked at.
    if _FD_PATH.fullmatch(path) is None:
        raise CarrierUnusable(f"{path[:64]!r} is not a path of shared memory")
    # Opening a terminal, a pipe or a device may have effects.
    if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
        raise CarrierUnusable(f"{path} is not KV memory")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _map(fd: int, num_bytes: int) -> memoryview:
    if os.fstat(fd).st_size != num_bytes:
        raise CarrierUnusable(f"{os.fstat(fd).st_size} bytes where {num_bytes} were announced")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise CarrierUnusable("the announced memory may shrink while it is read")
    return memoryview(mmap.mmap(fd, num_bytes, prot=mmap.PROT_READ))


def _word_of(slot: int) -> int:
    return (slot + 1) * _LINE_BYTES // _WORD_BYTES
