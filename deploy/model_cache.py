"""Checkpoint folders that are made once and kept: whole or not at all, by one process at a time."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[str, float], None]
"""(step, share of it that is done in [0, 1])."""


def build_once(
    target: Path,
    build: Callable[[Path, Path], None],
    *,
    is_complete: Callable[[Path], bool] = Path.is_dir,
    on_progress: Progress,
) -> None:
    """Have `build(checkpoint, scratch)` fill an empty folder, which then becomes `target`.

    A crash leaves no half checkpoint, and processes that call this at once share one.
    """
    if is_complete(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_process(target.with_name(f"{target.name}.lock"), on_progress):
        if not is_complete(target):
            _build(target, build)


@contextmanager
def only_process(lock_path: Path, on_progress: Progress) -> Iterator[None]:
    """Hold the lock; the kernel unlocks when this process dies."""
    with lock_path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("wait for another process that fetches it", 0.0)
            # Bounded by that process's own bounds.
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def file_digest(path: Path, kind: str) -> str:
    """16 hex digits of a file's content; `kind` is what is made of it, with its version."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(
            file, lambda: hashlib.blake2b(digest_size=8, person=kind.encode())
        )
    return digest.hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _build(target: Path, build: Callable[[Path, Path], None]) -> None:
    # Of a process that died: nobody else can be writing here, we hold the lock.
    for leftover in (target, *target.parent.glob(f"{target.name}.partial-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    # Next to the target, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f"{target.name}.partial-"
    ) as partial:
        checkpoint, scratch = Path(partial) / "checkpoint", Path(partial) / "scratch"
        checkpoint.mkdir()
        scratch.mkdir()
        build(checkpoint, scratch)
        fsync(checkpoint)
        checkpoint.rename(target)
    fsync(target.parent)
