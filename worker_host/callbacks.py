"""An exception in an event loop callback has no task to end; here it ends the process."""

import asyncio
from typing import Any


class CallbackErrors:
    """Turns the first failed callback of a loop into an exception of `run`."""

    def __init__(self) -> None:
        self._failed = asyncio.Event()
        self._error: BaseException | None = None

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: logs as always, and remembers callbacks' errors."""
        loop.default_exception_handler(context)
        # Tasks without a reader and closed transports come here too, without a handle.
        if "handle" in context and self._error is None:
            self._error = context.get("exception")
            self._failed.set()

    async def run(self) -> None:
        """Wait for an error, and raise it."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error
