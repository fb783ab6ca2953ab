"""What the processes of a cluster write, one file each on the host where they run."""

import os
import re
import shutil
from pathlib import Path

from core.errors import BatonError
from core.paths import user_state_dir

MAX_KEPT_BYTES = 16 * 1024 * 1024
"""A file larger than this is begun anew when its process starts; at WARNING few ever get there."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class UnknownLog(BatonError):
    """No such log on that host."""

    status = "NOT_FOUND"


def log_path(name: str, state_dir: Path | None = None) -> Path:
    """Of CLUSTER/MEMBER. Raises UnknownLog for a name that none could have."""
    if not _NAME.fullmatch(name):
        raise UnknownLog("a log is named CLUSTER/MEMBER, of letters, digits and ._-")
    cluster, member = name.split("/")
    return (state_dir or user_state_dir()) / "logs" / cluster / f"{member}.log"


def write_to(path: Path) -> None:
    """From now on standard output and error of this process, its libraries' too, go there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_large = path.exists() and path.stat().st_size > MAX_KEPT_BYTES
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if is_large else os.O_APPEND)
    # Prompts are never logged, but who may read this is still only its owner.
    descriptor = os.open(path, flags, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def read_piece(path: Path, offset: int, max_bytes: int) -> tuple[bytes, int]:
    """From a byte on, or from so many before the end, and where the next piece begins."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            file.seek(start)
            piece = file.read(max_bytes)
    except FileNotFoundError:
        raise UnknownLog(f"no log of {path.stem}") from None
    return piece, start + len(piece)


def remove_logs(cluster: str, state_dir: Path | None = None) -> None:
    """All that the processes of a cluster have written on this host."""
    shutil.rmtree(log_path(f"{cluster}/any", state_dir).parent, ignore_errors=True)
