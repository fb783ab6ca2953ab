"""What waits to be written to one client: bounded, and coalesced when its writer is behind."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from core.clock import Clock
from core.errors import BatonError, SlowReader
from core.request import TokenLogprobs
from router.events import Delta, Event, Finished

BYTES_PER_TOKEN = 16
"""What an unread token costs here, its text not counted: an int in a list and its share."""
BYTES_PER_LOGPROB = 16
"""A token's own, or one of its likeliest: 11 bytes on the wire, and ten times that as objects here,
so that a reader may be 370 tokens behind with 20 likeliest each, for about 1 MB."""
HARD_FACTOR = 2
"""Past this many times the limit a reader is ended at once, stall time or not: the bound."""

Left = Callable[[int, float], None]
"""Told how many tokens left, and when."""
MakeFinished = Callable[[], Finished]
"""Called when the last token has left: the timing is known only then."""


@dataclass(slots=True, eq=False)
class _Unread:
    """One choice's unread news."""

    position: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    left: Left | None = None
    finished: MakeFinished | None = None


class ClientBuffer:
    """All choices of one request put here; one writer takes."""

    def __init__(self, *, max_bytes: int, stall_s: float, clock: Clock) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._clock = clock
        self._unread: OrderedDict[int, _Unread] = OrderedDict()
        self._num_bytes = 0
        self._full_since_s: float | None = None
        self._news = asyncio.Event()
        self.over = asyncio.Event()
        """The writer has written all, or there is an error."""
        self.error: BatonError | None = None
        """Why the answer ended badly; what is unread then is never written."""

    def put(self, choice: int, delta: Delta, left: Left) -> None:
        """Add tokens and text; joined with what is unread of the same choice."""
        unread = self._unread.setdefault(choice, _Unread(position=delta.position))
        unread.token_ids += delta.token_ids
        unread.text += delta.text
        unread.logprobs += delta.logprobs
        unread.left = left
        self._grow(_num_bytes(delta))
        self._news.set()

    def finish(self, choice: int, position: int, finished: MakeFinished) -> None:
        """The choice has ended well."""
        self._unread.setdefault(choice, _Unread(position=position)).finished = finished
        self._news.set()

    def fail(self, error: BatonError) -> None:
        """The request has ended badly; the first error counts."""
        if self.error is None:
            self.error = error
        self.over.set()

    async def take(self) -> list[Event]:
        """What is unread of one choice, once there is any; an error is for `over` to tell.

        Only what a writer waits for is turned into messages: tokens that come while it is busy
        leave together.
        """
        while not self._unread:
            self._news.clear()
            await self._news.wait()
        choice, unread = self._unread.popitem(last=False)
        self._shrink(_num_bytes(unread))
        return self._events(choice, unread)

    def _events(self, choice: int, unread: _Unread) -> list[Event]:
        events: list[Event] = []
        if unread.token_ids or unread.text:
            events.append(
                Delta(choice, unread.position, unread.token_ids, unread.text, unread.logprobs)
            )
            if unread.left is not None:
                unread.left(len(unread.token_ids), self._clock.now_s())
        if unread.finished is not None:
            events.append(unread.finished())
        return events

    def _grow(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes <= self._max_bytes:
            return
        now_s = self._clock.now_s()
        if self._full_since_s is None:
            self._full_since_s = now_s
        stalled_s = now_s - self._full_since_s
        if stalled_s >= self._stall_s or self._num_bytes > HARD_FACTOR * self._max_bytes:
            self.fail(
                SlowReader(
                    f"{self._num_bytes} bytes unread for {stalled_s:.3g} s, limits"
                    f" {self._max_bytes} bytes and {self._stall_s:g} s"
                )
            )

    def _shrink(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes
        # It reads: whatever is full now is full since now.
        self._full_since_s = None


def _num_bytes(news: Delta | _Unread) -> int:
    num_logprobs = sum(1 + len(token.top) for token in news.logprobs)
    return (
        len(news.text.encode())
        + BYTES_PER_TOKEN * len(news.token_ids)
        + BYTES_PER_LOGPROB * num_logprobs
    )
