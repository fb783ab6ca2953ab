"""Start, find and stop the Ray that a folder stands for."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.errors import BatonError
from deploy.local_ray.door import (
    BUSY,
    LOCK,
    LOG,
    UP,
    RayDoor,
    is_held,
    read_door,
    read_holder,
    take_folder,
)
from deploy.local_ray.processes import end_session, exists, kill
from deploy.local_ray.remains import clear_remains

START_TIMEOUT_S = 120.0
"""Took 4 to 6 s on two idle cores; others may be busy with a model."""
STOP_TIMEOUT_S = 15.0
"""Took under 1 s where tried; Ray's own bound for one of its processes is 1 s, then SIGKILL."""
LOOK_AGAIN_S = 0.05
"""While another process starts or stops the same Ray; nothing tells us when it is done."""
MAX_LOG_BYTES = 2000


class RayNotStarted(BatonError):
    """The local Ray did not come up; says what its log said last."""

    status = "UNAVAILABLE"
    retryable = True


async def start_local_ray(
    folder: Path, *, num_cpus: int, num_gpus: int, timeout_s: float = START_TIMEOUT_S
) -> RayDoor:
    """The Ray of `folder`: the one that runs, whatever it was started with, or a new one.

    It outlives this process. What a killed one left behind is cleared away first.
    Raises RayNotStarted, and leaves none running then.
    """
    folder = _made(folder)
    try:
        async with asyncio.timeout(timeout_s):
            while (door := running_local_ray(folder)) is None:
                await _launch(folder, num_cpus, num_gpus)
            return door
    except TimeoutError:
        raise RayNotStarted(f"Ray not up in {timeout_s} s: {_log_tail(folder)}") from None


async def stop_local_ray(folder: Path, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End it, with every process of it, and delete its files; SIGKILL for what takes longer."""
    if not (folder / LOCK).exists():
        return
    while (lock := take_folder(folder)) is None:
        if (holder := read_holder(folder)) is not None:
            kill(holder.pid, signal.SIGTERM)
            await end_session(holder.pid, grace_s=timeout_s)
        await asyncio.sleep(LOOK_AGAIN_S)
    if (left := read_holder(folder)) is not None:
        await clear_remains(left)
    (folder / LOG).unlink(missing_ok=True)
    lock.remove()


def running_local_ray(folder: Path) -> RayDoor | None:
    """The way into it, if it is up."""
    holder = read_holder(folder)
    if holder is None or not exists(holder.pid) or not is_held(folder):
        return None
    return read_door(folder, holder)


async def _launch(folder: Path, num_cpus: int, num_gpus: int) -> None:
    """Start one, and wait until it is up. Returns at once when there is one."""
    command = [
        *(sys.executable, "-m", "deploy.local_ray", "--folder", str(folder)),
        *("--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)),
    ]
    with _pipe() as (reading, writing), _log(folder) as log:
        launcher = await asyncio.create_subprocess_exec(
            *(*command, "--ready-fd", str(writing.fileno())),
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writing.fileno(),),
        )
        writing.close()
        try:
            # It goes to the background as soon as it has read its options.
            await launcher.wait()
            word = await _all_of(reading)
        except asyncio.CancelledError:
            await stop_local_ray(folder)
            raise
    if word == BUSY:
        await asyncio.sleep(LOOK_AGAIN_S)
    elif word != UP:
        raise RayNotStarted(f"Ray ended while it started: {_log_tail(folder)}")


@contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb") as reading, open(write_fd, "wb") as writing:
        yield reading, writing


def _log(folder: Path) -> BinaryIO:
    return open(folder / LOG, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


async def _all_of(pipe: BinaryIO) -> bytes:
    """What is written until the other end is closed."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        return await reader.read()
    finally:
        transport.close()


def _log_tail(folder: Path) -> str:
    try:
        return (folder / LOG).read_bytes()[-MAX_LOG_BYTES:].decode(errors="replace")
    except FileNotFoundError:
        return "no log"


def _made(folder: Path) -> Path:
    """Absolute: the background process has another working folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()
