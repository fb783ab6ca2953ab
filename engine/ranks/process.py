"""A rank's process as its leader holds it: command line, control channel, errors, death."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.ranks.channel import Channel
from engine.ranks.spec import RankFiles, RankSpec

NUM_KEPT_LINES = 5
"""Last lines of standard error that a reason quotes: of a traceback the one that tells is last."""
STOP_GRACE_S = 5.0
"""How long a rank that was told to stop may take: it only has to leave its loop."""
JOIN_TIMEOUT_S = 5.0
"""How long threads may take to see the end of a process that has ended."""
STDERR_FD = 2
IMPORT_ROOT = Path(__file__).resolve().parents[2]


class RankProcess:
    """One child rank. Its standard error goes to ours line by line."""

    def __init__(self, spec: RankSpec, files: RankFiles, on_exit: Callable[[str], None]) -> None:
        """Start it. `on_exit(reason)` is called in a thread of its own, whatever ends it."""
        self.rank = spec.rank
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                _command(spec, theirs.fileno(), files),
                stdin=subprocess.DEVNULL,
                stdout=STDERR_FD,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), *files),
                # `-m` finds the packages there, wherever we were started.
                cwd=IMPORT_ROOT,
                # A Ctrl-C at the terminal is the leader's to obey: it stops its ranks in order.
                process_group=0,
            )
        self.channel = Channel(ours)
        self._last_lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        # Daemons: a leader that ends without `stop` must not wait for ranks that wait for its end.
        self._relay = threading.Thread(
            target=self._relay_stderr, name=f"{self} stderr", daemon=True
        )
        self._watch = threading.Thread(
            target=self._wait, args=(on_exit,), name=f"{self} watch", daemon=True
        )
        self._relay.start()
        self._watch.start()

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self._process.pid})"

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once."""
        # Nothing to kill is what is wanted.
        with suppress(ProcessLookupError):
            self._process.kill()

    def stop(self) -> None:
        """Let it end by itself now that nobody speaks to it, then make it; returns when it has."""
        self.channel.close()
        for force, patience_s in ((self._process.terminate, STOP_GRACE_S), (self.kill, 1.0)):
            try:
                self._process.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                force()
        self._process.wait(JOIN_TIMEOUT_S)
        for thread in (self._watch, self._relay):
            if thread is not threading.current_thread():
                thread.join(JOIN_TIMEOUT_S)

    def _relay_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                os.write(STDERR_FD, line)
                self._last_lines.append(line.decode(errors="replace").rstrip())

    def _wait(self, on_exit: Callable[[str], None]) -> None:
        # Without a bound of its own: `stop` and `kill` end the process, and so this.
        code = self._process.wait()
        # What it said last belongs to the reason, and is in the pipe by now.
        self._relay.join(JOIN_TIMEOUT_S)
        said = f": {' | '.join(self._last_lines)}" if self._last_lines else ""
        on_exit(f"{self} {_how(code)}{said}")


def _command(spec: RankSpec, channel_fd: int, files: RankFiles) -> list[str]:
    command = [sys.executable, "-m", "engine.ranks.worker", "--spec-json", spec.to_json()]
    fds = {"--channel-fd": channel_fd, "--kv-fd": files.kv, "--sums-fd": files.sums}
    return [*command, *(text for name, fd in fds.items() for text in (name, str(fd)))]


def _how(code: int) -> str:
    return f"ended with status {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
