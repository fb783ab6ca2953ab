"""Ctrl-C and SIGTERM: end in order, once, from whatever point."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from core.errors import BatonError

T = TypeVar("T")


class Interrupted(BatonError):
    """SIGINT or SIGTERM ended the work before it was done."""

    status = "CANCELLED"

    def __init__(self, number: int) -> None:
        super().__init__("interrupted; everything is stopped")
        self.exit_status = 128 + number
        """As shells report a process that a signal ended."""


def terminate_like_ctrl_c() -> None:
    """SIGTERM raises KeyboardInterrupt: for what runs before there is an event loop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; the first SIGINT or SIGTERM cancels it, and no later one disturbs its cleanup.

    Raises Interrupted, unless the work takes the cancel as its regular end.
    """
    task = asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(received[0]) from None
