"""The output file of a batch: what is in it is done, whatever happened to who wrote it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import BatonError


class JournalError(BatonError):
    """The output file cannot be used."""

    status = "FAILED_PRECONDITION"


@dataclass(slots=True, eq=False)
class Journal:
    """Appends one line per answer."""

    path: Path
    file: BinaryIO
    done: frozenset[str]
    """custom_ids that were there when it was opened."""

    def add(self, record: dict[str, Any]) -> None:
        """One answer; out of this process before this returns."""
        self.file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.file.flush()


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open or go on with an output file. Raises JournalError.

    A line that was cut off by a crash is taken out: its request is answered again.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise JournalError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{path} is written by another batch just now") from error
        yield Journal(path, file, frozenset(_answered(path, file)))
        os.fsync(file.fileno())


def _answered(path: Path, file: BinaryIO) -> Iterator[str]:
    file.seek(0)
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            file.truncate(end)
            return
        end += len(line)
        yield _custom_id(path, number, line)


def _custom_id(path: Path, number: int, line: bytes) -> str:
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        raise JournalError(
            f"{path}, line {number}: not written by a batch; name another output file"
        ) from None
