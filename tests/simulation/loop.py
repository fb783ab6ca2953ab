"""What the parts under test need of asyncio, without time or IO: coroutines are stepped by hand."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast


class Loop:
    """Runs what is due after each event of the world."""

    def __init__(self) -> None:
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: object = None
    ) -> None:
        """In the order of the calls; there is one context."""
        self._ready.append((callback, args))

    def create_future(self) -> "asyncio.Future[Any]":
        """Ours."""
        return asyncio.Future(loop=self.as_asyncio())

    def get_debug(self) -> bool:
        """Never."""
        return False

    def as_asyncio(self) -> asyncio.AbstractEventLoop:
        """What futures and events take it for; they call no more than what is here."""
        return cast("asyncio.AbstractEventLoop", self)

    def run_ready(self) -> None:
        """Until nothing is due."""
        while self._ready:
            callback, args = self._ready.popleft()
            callback(*args)


class Waiting:
    """A coroutine that waits for one thing after the other."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], done: Callable[[], None]) -> None:
        """`done` is called at its end, at once perhaps; not when it is closed."""
        self._coroutine = coroutine
        self._done = done
        self._is_closed = False
        self._step()

    def close(self) -> None:
        """As a task that is cancelled; idempotent."""
        self._is_closed = True
        self._coroutine.close()

    def _step(self, _: object = None) -> None:
        if self._is_closed:
            return
        try:
            future = self._coroutine.send(None)
        except StopIteration:
            self._is_closed = True
            self._done()
        else:
            # Whoever awaits a future marks it so; the task that would clear the mark is we.
            future._asyncio_future_blocking = False
            future.add_done_callback(self._step)
