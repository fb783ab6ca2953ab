"""Temp folders that do not outlive their process for long: the next one clears them away."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

LOCK_NAME = "owner.lock"


class ScratchFolder:
    """A short private folder, held by a file lock, which the kernel drops when its owner dies."""

    def __init__(self, prefix: str, *, parent: Path | None = None) -> None:
        root = parent or Path(tempfile.gettempdir())
        _clear_orphans(root, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        self._lock_fd = _hold(self.path)

    def remove(self) -> None:
        """Delete the folder and let go of the lock; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _hold(folder: Path) -> int:
    # Renamed only once it is locked: whoever sees LOCK_NAME unlocked sees an orphan.
    new = folder / (LOCK_NAME + ".new")
    lock_fd = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / LOCK_NAME)
    return lock_fd


def _clear_orphans(root: Path, prefix: str) -> None:
    for lock in root.glob(f"{prefix}*/{LOCK_NAME}"):
        # Others' folders cannot be opened, and two may clear one at the same time.
        with contextlib.suppress(OSError):
            if _is_orphan(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _is_orphan(lock: Path) -> bool:
    if lock.parent.lstat().st_uid != os.getuid():
        return False
    lock_fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)
    return True
