"""The Python client: streams answers, and goes on with them when a router is lost.

async with AsyncClient(["127.0.0.1:5000", "127.0.0.1:5001"]) as client:
    async for event in client.generate("Once upon a time", max_tokens=32):
        ...
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc.aio

from core.clock import Clock, MonotonicClock
from core.errors import Cancelled, ConfigError, DeadlinePassed, Draining, PeerLost
from core.request import TokenLogprobs
from router.events import Delta, Event, Finished
from router.progress import Options, Progress, build_message
from router.wire import event_from_pb
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import generation_pb2_grpc
from rpc.status import error_from

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 600.0
"""As the router's own default."""
MAX_TRIES = 8
"""Without any progress in between: with the pauses below a router may restart for 4 s."""
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
CLOSE_TIMEOUT_S = 5.0

_ELSEWHERE = (PeerLost, Cancelled, Draining)
"""A router that says one of these, or dies, has not judged the request: another may take it.
A `Cancelled` that arrives as a status is the router's: our own cancel raises CancelledError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer of one choice."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """Of `token_ids`, one by one; empty unless they were asked for."""
    finished: Finished


class AsyncClient:
    """Talks to one cluster through any of its routers; every error raised is a BatonError."""

    def __init__(self, addresses: Sequence[str], *, clock: Clock | None = None) -> None:
        if not addresses:
            raise ConfigError(("at least one router address is needed",))
        self._clock = clock or MonotonicClock()
        self._channels = [dial(address, plane=Plane.CLIENT) for address in addresses]
        self._stubs = [generation_pb2_grpc.GenerationStub(c) for c in self._channels]
        self._turn = 0
        """Which router is asked first: the one that answered last."""

    async def __aenter__(self) -> Self:
        """Ready as it is."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Drop all connections; answers under way end."""
        for channel in self._channels:
            await channel.close()

    async def generate(
        self, prompt: str | None = None, /, **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """Accepted, then Deltas, and one Finished per choice. Leaving the loop cancels (aclose)."""
        timeout_s = options.get("timeout_s", DEFAULT_TIMEOUT_S)
        deadline_s = self._clock.now_s() + timeout_s
        progress = Progress(build_message(prompt, options))
        num_tries = 0
        while not progress.is_complete:
            try:
                async with aclosing(self._stream(progress, deadline_s)) as events:
                    async for event in events:
                        num_tries = 0
                        yield event
            except _ELSEWHERE as error:
                num_tries += 1
                if num_tries >= MAX_TRIES or not progress.resume():
                    raise
                await self._pause(num_tries, deadline_s, error)

    async def complete(
        self, prompt: str | None = None, /, **options: Unpack[Options]
    ) -> list[Completion]:
        """All choices, whole."""
        events = [event async for event in self.generate(prompt, **options)]
        return list(_completions(events))

    async def _stream(self, progress: Progress, deadline_s: float) -> AsyncGenerator[Event, None]:
        """What one router gives; ends or raises."""
        left_s = deadline_s - self._clock.now_s()
        if left_s <= 0:
            raise DeadlinePassed("the deadline passed on the client's side")
        call = self._stubs[self._turn].Generate(progress.message(left_s), timeout=left_s)
        try:
            async for message in call:
                event = event_from_pb(message)
                if event is not None and (seen := progress.take(event)) is not None:
                    yield seen
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
        finally:
            call.cancel()
        if not progress.is_complete:
            raise PeerLost("the router ended the stream early")

    async def _pause(self, num_tries: int, deadline_s: float, error: Exception) -> None:
        """Turn to the next router; at once unless all have been tried."""
        self._turn = (self._turn + 1) % len(self._stubs)
        if num_tries < len(self._stubs):
            return
        num_rounds = num_tries // len(self._stubs)
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**num_rounds)
        if self._clock.now_s() + pause_s >= deadline_s:
            raise error
        await asyncio.sleep(pause_s)


class Client:
    """AsyncClient for programs without an event loop: it runs on a thread of its own."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="baton-client")
        self._thread.daemon = True
        self._thread.start()
        try:
            self._client = self._run(_open(addresses))
        except BaseException:
            self._end_thread()
            raise

    def __enter__(self) -> Self:
        """Ready as it is."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop all connections; answers under way end."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._end_thread()

    def generate(self, prompt: str | None = None, /, **options: Unpack[Options]) -> Iterator[Event]:
        """See AsyncClient.generate. Leaving the loop early, or `close` of the iterator, cancels."""
        events = self._client.generate(prompt, **options)
        try:
            while (event := self._run(anext(events, None))) is not None:
                yield event
        finally:
            self._run(events.aclose())

    def complete(
        self, prompt: str | None = None, /, **options: Unpack[Options]
    ) -> list[Completion]:
        """All choices, whole."""
        return self._run(self._client.complete(prompt, **options))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        # Bounded by the work itself: every call has a deadline.
        return asyncio.run_coroutine_threadsafe(_as_coroutine(work), self._loop).result()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()


async def _open(addresses: Sequence[str]) -> AsyncClient:
    return AsyncClient(addresses)


async def _as_coroutine(work: Coroutine[Any, Any, T]) -> T:
    return await work


def _completions(events: Sequence[Event]) -> Iterator[Completion]:
    finished = sorted((e for e in events if isinstance(e, Finished)), key=lambda e: e.choice)
    for end in finished:
        deltas = [e for e in events if isinstance(e, Delta) and e.choice == end.choice]
        yield Completion(
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            logprobs=tuple(token for delta in deltas for token in delta.logprobs),
            finished=end,
        )
