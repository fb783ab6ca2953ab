"""Copies in threads: nobody leaves one running, or its blocks would change hands under it."""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, TypeVar

from core.kv_layout import KvRange

T = TypeVar("T")


def within_blocks(piece: KvRange, block_size: int) -> range:
    """`piece`'s tokens counted from the first block that it touches."""
    start = piece.tokens.start // block_size * block_size
    return range(piece.tokens.start - start, piece.tokens.stop - start)


async def run_to_end(copies: Executor, copy: Callable[[], T]) -> T:
    """Run `copy` in a thread. A cancel is obeyed only when the thread has ended."""
    future = asyncio.get_running_loop().run_in_executor(copies, copy)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await all_ended({future})
        raise


async def all_ended(futures: Collection[asyncio.Future[Any]]) -> None:
    """Wait until every copy has ended and its callbacks have run, cancelled or not.

    Bounded: a copy moves at most one segment. A cancel is not lost, it comes after.
    """
    cancelled: asyncio.CancelledError | None = None
    remaining = set(futures)
    while remaining:
        try:
            _, remaining = await asyncio.wait(remaining)
        except asyncio.CancelledError as error:
            cancelled = error
    for future in futures:
        with suppress(asyncio.CancelledError):
            future.exception()  # looked at, so that asyncio does not report it
    if cancelled is not None:
        raise cancelled
