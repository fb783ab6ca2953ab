"""`python -m deploy.local_ray --folder F --num-cpus N --num-gpus N`: a Ray in the background.

Two processes hold it: the head, whose children Ray's processes are, and a warden, which waits for
the head's end and then sees to it that nothing is left. Each takes the other's death, SIGKILL
included, for the end of both. SIGTERM or SIGINT to the warden is the regular end.

Left to itself, a Ray whose head was killed lives on in part: its store and its host's part die
with the head, but actors and agents of it try to reach the store for a minute or two first.
"""

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from core.logs import LogFormat, begin_logging
from deploy.interrupt import Interrupted, until_signal
from deploy.local_ray.door import (
    BUSY,
    LOG,
    UP,
    FolderLock,
    Holder,
    RayDoor,
    read_holder,
    take_folder,
)
from deploy.local_ray.guard import RayLost
from deploy.local_ray.head import HeadSpec, serve
from deploy.local_ray.processes import end_session, kill
from deploy.local_ray.remains import clear_remains
from deploy.ray_runtime import FOLDER_PREFIX, short_folder
from registry.scratch import ScratchFolder

logger = logging.getLogger("deploy.local_ray")

PR_SET_PDEATHSIG = 1
GRACE_S = 3.0
"""For Ray's workers to see that their host's part is gone; took under 1 s where tried."""


def main() -> None:
    """Go to the background and hold the folder, unless somebody does."""
    options = _options()
    folder: Path = options.folder.resolve()
    if os.fork() != 0:
        return
    os.setsid()
    lock = take_folder(folder)
    if lock is None:
        os.write(options.ready_fd, BUSY)
        return
    before = read_holder(folder)
    scratch = ScratchFolder(FOLDER_PREFIX, parent=short_folder())
    lock.say(Holder(pid=os.getpid(), scratch=scratch.path))
    _write_log(folder / LOG)
    if before is not None:
        asyncio.run(clear_remains(before))
    # What is dropped into the working folder goes with it.
    os.chdir(scratch.path)
    status = _hold(options, lock, scratch)
    _leave_nothing(lock, scratch, is_in_order=status == 0)
    sys.exit(status)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local_ray")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--num-cpus", type=int, required=True)
    parser.add_argument("--num-gpus", type=int, default=0)
    parser.add_argument("--ready-fd", type=int, required=True, help="says busy or up")
    return parser.parse_args()


def _write_log(path: Path) -> None:
    log_fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(log_fd, sys.stdout.fileno())
    os.dup2(log_fd, sys.stderr.fileno())
    os.close(log_fd)
    begin_logging("INFO", LogFormat.TEXT)


def _hold(options: argparse.Namespace, lock: FolderLock, scratch: ScratchFolder) -> int:
    """Become warden and head; returns, in the last of the two, the exit status of the head."""
    warden_pid = os.getpid()
    head_pid = os.fork()
    if head_pid != 0:
        os.close(options.ready_fd)
        return _wait_for(head_pid)
    _end_with(warden_pid)
    status = _run_head(options, lock, scratch, warden_pid)
    if os.getppid() == warden_pid:
        sys.exit(status)
    return status


def _wait_for(head_pid: int) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: kill(head_pid, signal.SIGTERM))
    _, status = os.waitpid(head_pid, 0)
    # A second signal is not to disturb what is left to do, which takes no longer than GRACE_S.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return os.waitstatus_to_exitcode(status)


def _end_with(warden_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != warden_pid:
            sys.exit("the warden died before it could be watched")


def _run_head(
    options: argparse.Namespace, lock: FolderLock, scratch: ScratchFolder, warden_pid: int
) -> int:
    """Returns the exit status: 0 when a signal ended it."""

    def on_up(door: RayDoor) -> None:
        lock.open_door(door, warden_pid)
        os.write(options.ready_fd, UP)
        os.close(options.ready_fd)

    spec = HeadSpec(num_cpus=options.num_cpus, num_gpus=options.num_gpus)
    try:
        asyncio.run(until_signal(serve(spec, scratch.path, on_up)))
    except Interrupted:
        return 0
    except RayLost:
        logger.exception("ray is lost, and so ended")
    return 1


def _leave_nothing(lock: FolderLock, scratch: ScratchFolder, *, is_in_order: bool) -> None:
    session = os.getsid(0)
    asyncio.run(end_session(session, spare={os.getpid()}, grace_s=GRACE_S))
    scratch.remove()
    if is_in_order:
        # Otherwise it says why.
        (lock.folder / LOG).unlink(missing_ok=True)
    lock.remove()


if __name__ == "__main__":
    main()
