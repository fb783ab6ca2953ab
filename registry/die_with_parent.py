"""`python -I -S die_with_parent.py PARENT_PID COMMAND...`: become COMMAND, die with PARENT_PID.

A program of its own: between fork and exec of a process with threads Python code may deadlock, so
`preexec_fn` is no place for this. Linux only; elsewhere COMMAND just runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ask the kernel for the signal, then exec: the wish survives it."""
    parent_pid, command = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent_pid:
            sys.exit("the parent died before it could be watched")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv)
