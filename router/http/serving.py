"""Serves what an HTTP client asked, as one reply or as a stream, for as long as it stays."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from core.errors import Cancelled
from core.validation import RequestDraft
from router.events import Event
from router.http.asked import Asked
from router.http.chunks import Chunks, server_sent
from router.http.errors import body_of
from router.http.whole import Collected, document
from router.orchestrator import Orchestrator
from rpc.status import our_error

DOOR = "http"
BEAT_S = 15.0
"""Proxies cut connections on which nothing comes for a minute; some after half of one."""
BEAT = b": waiting\n\n"
"""A comment, which readers of server-sent events pass over."""
LAST_WORD_S = 1.0
"""To tell a reader that has stopped reading why its answer ends."""

Take = Callable[[int, Event], Awaitable[None]]
"""(index of the prompt, its next event)."""


async def serve_whole(orchestrator: Orchestrator, asked: Asked, receive: Receive) -> JSONResponse:
    """Everything at once. Raises the typed error that ended it."""
    answer = Collected(asked.num_choices)

    async def take(prompt: int, event: Event) -> None:
        answer.take(prompt, event)

    await while_connected(receive, serve_all(orchestrator, asked.drafts, take, DOOR))
    return JSONResponse(document(asked, answer))


class StreamReply:
    """Server-sent events; an ASGI application of one request."""

    def __init__(self, orchestrator: Orchestrator, asked: Asked, *, beat_s: float = BEAT_S) -> None:
        """`beat_s`: the longest silence."""
        self._orchestrator = orchestrator
        self._asked = asked
        self._beat_s = beat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the last token, or until the client leaves.

        Raises an error of before the first token, or the first beat: it still gets a status of its
        own. A later one is the stream's last event.
        """
        chunks, sender = Chunks(self._asked), _Sender(send)

        async def take(prompt: int, event: Event) -> None:
            await sender.send(chunks.take(prompt, event))

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(sender.beat(self._beat_s))
                await serve_all(self._orchestrator, self._asked.drafts, take, DOOR)
                beats.cancel()

        try:
            await while_connected(receive, work())
        except Exception as error:
            if not sender.has_begun:
                raise
            body = body_of(our_error(error), self._asked.request_id)
            await sender.say_last(server_sent(body))
        else:
            await sender.send(chunks.end(), more=False)


class _Sender:
    """Begins the response with the first bytes. Prompts share it: one message at a time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._num_sent = 0
        self.has_begun = False

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Waits while the client's connection is full."""
        if not data:
            return
        self._num_sent += 1
        async with self._lock:
            if not self.has_begun:
                self.has_begun = True
                await self._send(_START)
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def beat(self, every_s: float) -> None:
        """Break every silence of so many seconds, until cancelled."""
        while True:
            num_before = self._num_sent
            await asyncio.sleep(every_s)
            if num_before == self._num_sent:
                await self.send(BEAT)

    async def say_last(self, data: bytes) -> None:
        """The same, for a client that may not read."""
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self.send(data, more=False)
        except TimeoutError:
            return  # it gets the end of the connection instead


_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        # Proxies that collect a reply before they pass it on would undo the streaming.
        (b"x-accel-buffering", b"no"),
    ],
}


async def serve_all(
    orchestrator: Orchestrator,
    drafts: Sequence[RequestDraft],
    take: Take,
    door: str,
    *,
    timeout_s: float | None = None,
) -> None:
    """All prompts of one call at once; the first that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for index, draft in enumerate(drafts):
            write = partial(take, index)
            work = orchestrator.serve(draft, write, timeout_s=timeout_s, door=door)
            group.create_task(work)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which is cancelled when the client leaves. Raises Cancelled then."""
    has_left = False

    async def watch(task: asyncio.Task[None]) -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        task.cancel()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        watcher = group.create_task(watch(task))
        task.add_done_callback(lambda _: watcher.cancel())
    if has_left:
        raise Cancelled("the client closed its connection")
