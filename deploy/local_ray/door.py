"""The files by which a background Ray is found: who holds its folder, and how to come in.

`ray.lock` is held for as long as a process of ours answers for the folder; the kernel lets go of
it whatever that process died of. `ray.json` is there while Ray is up.
"""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

LOCK = "ray.lock"
DOOR = "ray.json"
LOG = "ray.log"
"""Of the last one, if it did not end in order."""
BUSY = b"busy"
UP = b"up"
"""What a background process tells who started it; nothing: it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayDoor:
    """How to come into a Ray: what `joined_ray` takes."""

    address: str
    """host:port of its store of what runs where (GCS)."""
    token: str = field(repr=False)
    """Who knows it may do anything there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who answers for a folder, or did until it was killed."""

    pid: int
    """Also the id of the session of which every process of that Ray is."""
    scratch: Path
    """Where that Ray keeps sockets, logs and its store."""


class FolderLock:
    """`ray.lock`, held; a fork of the process holds it too, a program that it starts does not."""

    def __init__(self, folder: Path, lock_fd: int) -> None:
        self.folder = folder
        self._lock_fd = lock_fd

    def say(self, holder: Holder) -> None:
        """Leave word for who comes after a kill."""
        text = json.dumps({"pid": holder.pid, "scratch": str(holder.scratch)})
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, text.encode(), 0)

    def open_door(self, door: RayDoor, pid: int) -> None:
        """Write `ray.json`: whole or not at all, for this user's eyes."""
        new = self.folder / (DOOR + ".new")
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump({**asdict(door), "pid": pid}, file)
        new.rename(self.folder / DOOR)

    def remove(self) -> None:
        """Nothing is left to find: the door first, the lock last."""
        for name in (DOOR, DOOR + ".new", LOCK):
            (self.folder / name).unlink(missing_ok=True)


def take_folder(folder: Path) -> FolderLock | None:
    """The folder's lock, if nobody holds it."""
    path = folder / LOCK
    while True:
        lock_fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            return None
        # Its last holder may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock_fd), path.stat()):
                return FolderLock(folder, lock_fd)
        os.close(lock_fd)


def is_held(folder: Path) -> bool:
    """Whether a process answers for the folder: Ray is up, or starts or stops right now."""
    try:
        lock_fd = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


def read_holder(folder: Path) -> Holder | None:
    """What the holder of the lock, also a dead one, left word of."""
    try:
        told = json.loads((folder / LOCK).read_text())
    # Also while it is being written.
    except (FileNotFoundError, ValueError):
        return None
    return Holder(pid=told["pid"], scratch=Path(told["scratch"]))


def read_door(folder: Path, holder: Holder) -> RayDoor | None:
    """The way in that this holder wrote, not one before it."""
    try:
        told = json.loads((folder / DOOR).read_text())
    except FileNotFoundError:
        return None
    if told["pid"] != holder.pid:
        return None
    return RayDoor(address=told["address"], token=told["token"])
