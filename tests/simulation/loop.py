"""What the parts under test need of asyncio, without time or IO: coroutines are stepped by hand."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class Loop(asyncio.AbstractEventLoop):
    """Runs what is due after each event of the world."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """In the order of the calls."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        """Ours."""
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What a callback raised ends the seed."""
        raise context["exception"]

    def run_ready(self) -> None:
        """Until nothing is due."""
        while self._ready:
            self._ready.popleft()._run()


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
