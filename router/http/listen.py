"""Listens for HTTP on the router's own event loop: bounded connections, heads and goodbyes.

uvicorn's protocol without its server, which would own signals and poll for its end.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from rpc.serve import BindFailed

MAX_CONNECTIONS = 4096
"""More are answered 503; each takes about 30 KB."""
MAX_HEAD_BYTES = 32 * 1024
"""Request line and headers: the parser itself has no limit."""
HEAD_TIMEOUT_S = 20.0
"""From the connection's opening, or its last answer's first new byte, to a whole head."""
KEEP_ALIVE_S = 60
"""Of a connection without a request: clients keep them in a pool."""
SEND_BUFFER_BYTES = 64 * 1024
"""In the kernel, per connection: what a client does not read would grow there to megabytes, and
nobody would notice that it does not read. Enough for 600 KB/s to a client 100 ms away."""
GOODBYE_S = 1.0
"""For last bytes on their way, once all requests have ended."""


class BoundedHttp(HttpToolsProtocol):
    """Ends connections whose head does not come to an end."""

    _num_head_bytes = 0
    """Seen before the bytes that come next, which may hold the beginning of a body."""
    _is_in_head = True
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Opened."""
        super().connection_made(transport)
        self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES:
            self.transport.close()
            return
        self._num_head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes = True, 0
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._stop_clock()
        self._is_in_head = False
        super().on_headers_complete()

    def _stop_clock(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def bind_http(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises BindFailed."""
    try:
        listener = socket.create_server((host, port), backlog=1024)
        # Inherited by its connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return listener
    except OSError as error:
        raise BindFailed(f"cannot listen on {host}:{port}: {error.strerror}") from error


@asynccontextmanager
async def listening(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` until the block ends; what is not answered by then is broken off."""
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: BoundedHttp(config=config, server_state=state, app_state={}), sock=listener
    )
    try:
        yield
    finally:
        server.close()
        await _say_goodbye(state)


async def _say_goodbye(state: ServerState) -> None:
    for connection in list(state.connections):
        connection.shutdown()
    await _until_ended(state)
    # Those who are still served see their client leave.
    for connection in list(state.connections):
        connection.transport.abort()
    await _until_ended(state)


async def _until_ended(state: ServerState) -> None:
    if state.tasks:
        await asyncio.wait(state.tasks, timeout=GOODBYE_S)
