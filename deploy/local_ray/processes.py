"""Processes that are not all our children: when they end, and that they end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Collection
from contextlib import ExitStack

import psutil

from core.errors import BatonError

KILL_TIMEOUT_S = 30.0
"""A process in the middle of a write to a slow disk ends when that is done."""
POLL_S = 0.1
"""Where the kernel cannot be asked to tell (not Linux)."""


class ProcessesLeft(BatonError):
    """Processes that even SIGKILL did not end."""


async def first_ended(*pids: int) -> int:
    """Wait for the first of the processes to end."""
    if sys.platform != "linux":
        while True:
            if ended_pids := [pid for pid in pids if not exists(pid)]:
                return ended_pids[0]
            await asyncio.sleep(POLL_S)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    with ExitStack() as stack:
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return pid
            stack.callback(os.close, pidfd)
            # Readable from its death on, also while nobody has reaped it.
            loop.add_reader(pidfd, _settle, ended, pid)
            stack.callback(loop.remove_reader, pidfd)
        return await ended


def _settle(ended: "asyncio.Future[int]", pid: int) -> None:
    if not ended.done():
        ended.set_result(pid)


def session_of(pid: int) -> list[int]:
    """The processes of the session that `pid` leads or led, orphans too.

    Ray's own names for its processes say less: they rewrite command line and environment.
    """
    found = []
    for other in psutil.pids():
        # It may end right now, or be somebody else's.
        with contextlib.suppress(OSError):
            if os.getsid(other) == pid:
                found.append(other)
    return found


async def end_session(pid: int, *, spare: Collection[int] = (), grace_s: float = 0.0) -> None:
    """Kill every process of the session that has not ended in `grace_s`, and wait for their end.

    Raises ProcessesLeft when the kernel does not let go of one.
    """
    try:
        async with asyncio.timeout(grace_s):
            await _all_ended(_living(pid, spare))
    except TimeoutError:
        await _kill_session(pid, spare)


async def _kill_session(pid: int, spare: Collection[int]) -> None:
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            # Again: what is killed may have had a child meanwhile.
            while living := _living(pid, spare):
                for other in living:
                    kill(other, signal.SIGKILL)
                await _all_ended(living)
    except TimeoutError:
        left = _living(pid, spare)
        raise ProcessesLeft(f"{left} not gone {KILL_TIMEOUT_S} s after SIGKILL") from None


def _living(session: int, spare: Collection[int]) -> list[int]:
    return [pid for pid in session_of(session) if pid not in spare and exists(pid)]


def kill(pid: int, number: int) -> None:
    """Send a signal; one that has ended needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def exists(pid: int) -> bool:
    """Whether it runs: has not ended, whether or not anybody has reaped it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _all_ended(pids: Collection[int]) -> None:
    for pid in pids:
        await first_ended(pid)
