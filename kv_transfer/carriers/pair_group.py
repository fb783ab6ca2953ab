"""One end of a torch.distributed group of two: made on demand, used by one stream at a time.

Every call into torch blocks, so a thread of the group's own makes all of them, in order. It ends
with the group: at the latest when the wait that it is in has used up its time.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch.distributed import ProcessGroupGloo, Store  # type: ignore[attr-defined]

from core.errors import PeerLost
from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_line import PairLine
from kv_transfer.carriers.pair_staging import Bytes, Staging

SOURCE_RANK, SINK_RANK = 0, 1
NUM_AHEAD = 2
"""Payloads that a sink asks for before it knows of them. Gloo sends none that is not asked for, and
asking costs a round trip. They outlast a stream: the next one's payloads come in their place."""
_TAG = 1
T = TypeVar("T")


class _Work(Protocol):
    """A transfer under way."""

    def wait(self) -> bool: ...


class TwoRanks(Protocol):
    """What torch's stubs leave out of its process groups."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> _Work: ...
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> _Work: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """What moves the bytes."""

    name: str
    connect: Callable[[Store, int, str, float], TwoRanks]
    """From the store where both meet, our rank, our host, and the bound of each wait in seconds."""
    device: str = ""
    """UUID of the device that it moves from and to; empty for a host."""


def connect_gloo(store: Store, rank: int, host: str, timeout_s: float) -> TwoRanks:
    """Our end of a Gloo group of two, by TCP. Blocks until the other is there."""
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._threads = 1  # of collectives, which nobody calls here
    options._devices = [gloo.create_device(hostname=host)]
    group: TwoRanks = gloo(store, rank, 2, options)
    return group


GLOO = Backend("gloo", connect_gloo)


@dataclass(frozen=True, slots=True)
class PairPlace:
    """Which end of which group."""

    group_id: str
    """Secret of the two: who says it is let in."""
    rank: int
    host: str
    """Ours; the other end reaches us there."""


class PairGroup:
    """One end. All but what runs in its thread is owned by the event loop."""

    def __init__(self, place: PairPlace, backend: Backend, timeout_s: float) -> None:
        """`timeout_s` bounds every wait for the other end."""
        self.place = place
        self.is_dead = False
        """Of no use any more, for whatever reason."""
        self.is_open = False
        self.num_started = 0
        self.num_moved = 0
        """Transfers of all streams; `num_started` says how many should be."""
        self._backend = backend
        self._timeout_s = timeout_s
        self._line: PairLine | None = None
        self._listener: socket.socket | None = None
        self.staging = Staging()
        self._ranks: list[TwoRanks] = []
        """The one there is; only the thread touches it."""
        self._awaited: deque[tuple[Bytes, _Work]] = deque()
        """The sink's, only the thread touches it: asked for, though no frame has told of them."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pair-group")
        self._ending: Future[None] | None = None

    def listen(self) -> str:
        """The source's: the address where the sink is awaited, on a free port."""
        family = socket.AF_INET6 if ":" in self.place.host else socket.AF_INET
        self._listener = socket.create_server((self.place.host, 0), family=family, backlog=1)
        self._listener.setblocking(False)
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        return f"{host}:{self._listener.getsockname()[1]}"

    async def accept(self) -> None:
        """The source's: wait for the sink; the first to come is the only one. Raises
        CarrierUnusable."""
        assert self._listener is not None, "listen() comes first"
        loop = asyncio.get_running_loop()
        with self._opening():
            async with asyncio.timeout(self._timeout_s):
                connection, _ = await loop.sock_accept(self._listener)
                self._stop_listening()
                _, self._line = await loop.connect_accepted_socket(self._new_line, connection)
            await self._meet(self._line)

    async def reach(self, address: str) -> None:
        """The sink's: go where the source listens. Raises CarrierUnusable."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        with self._opening():
            async with asyncio.timeout(self._timeout_s):
                _, self._line = await loop.create_connection(
                    self._new_line, host.strip("[]"), int(port)
                )
            await self._meet(self._line)

    def send(self, tensor: torch.Tensor) -> "asyncio.Future[None]":
        """Queue it; it must not change before the future is done, which may raise PeerLost."""
        return self._move(partial(self._send, tensor))

    def receive(self) -> "asyncio.Future[Bytes]":
        """The next payload, at the beginning of a whole buffer; may raise PeerLost."""
        return self._move(self._receive)

    def drop(self) -> None:
        """End it, here and by that at the other end; idempotent."""
        if self.is_dead:
            return
        self.is_dead = True
        self._stop_listening()
        # The other end, told so, leaves the group, and that ends the wait our thread may be in.
        if self._line is not None:
            self._line.close()
        self._ending = self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    @property
    def is_gone(self) -> bool:
        """Dropped, and its thread has nothing left to do."""
        return self._ending is not None and self._ending.done()

    @property
    def is_still(self) -> bool:
        """Whatever was started has moved."""
        return self.num_started == self.num_moved

    def join(self) -> None:
        """Drop it and wait for its thread; only where nothing is under way."""
        self.drop()
        self._thread.shutdown()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """A group that is not opened is dropped; what hinders it is a reason to go inline."""
        if self.is_dead:
            raise CarrierUnusable("the pair group has ended")
        try:
            yield
        # Gloo raises RuntimeError, the connection OSError; TimeoutError is one.
        except (OSError, RuntimeError, PeerLost) as error:
            self.drop()
            raise CarrierUnusable(f"no pair group: {str(error) or 'timed out'}") from error
        except BaseException:
            self.drop()
            raise

    def _new_line(self) -> PairLine:
        return PairLine(self.drop, self._timeout_s)

    async def _meet(self, line: PairLine) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, partial(self._connect, line))
        self.is_open = True

    def _connect(self, line: PairLine) -> None:
        """In the thread."""
        store, rank = line.store, self.place.rank
        store.set(f"group/{rank}", self.place.group_id)
        if store.get(f"group/{1 - rank}") != self.place.group_id.encode():
            raise PeerLost("a stranger came to a pair group")
        host = self.place.host
        self._ranks.append(self._backend.connect(store, rank, host, self._timeout_s))

    def _move(self, transfer: Callable[[], T]) -> "asyncio.Future[T]":
        if self.is_dead:
            raise PeerLost("the pair group has ended")
        self.num_started += 1
        loop = asyncio.get_running_loop()
        moving = loop.run_in_executor(self._thread, partial(self._run, transfer))
        moving.add_done_callback(self._moved)
        return moving

    def _run(self, transfer: Callable[[], T]) -> T:
        """In the thread."""
        if not self._ranks:
            raise PeerLost("the pair group has ended")
        try:
            moved = transfer()
        # Gloo's only word for everything: a closed connection, a time that has passed.
        except RuntimeError as error:
            raise PeerLost(f"a pair group broke: {str(error).splitlines()[0][:256]}") from None
        # At once, not in a callback: the event loop may hear from the peer before of this.
        self.num_moved += 1
        return moved

    def _send(self, tensor: torch.Tensor) -> None:
        self._ranks[0].send([tensor], SINK_RANK, _TAG).wait()

    def _receive(self) -> Bytes:
        while len(self._awaited) <= NUM_AHEAD:
            # All of it, whatever will come: Gloo ends a process that is sent more than it has room
            # for, and leaves the rest of a buffer as it was.
            whole = self.staging.take()
            work = self._ranks[0].recv([torch.from_numpy(whole)], SOURCE_RANK, _TAG)
            self._awaited.append((whole, work))
        whole, work = self._awaited.popleft()
        work.wait()
        return whole

    def _end(self) -> None:
        """In the thread, because it joins threads of torch's."""
        self._awaited.clear()
        self._ranks.clear()

    def _moved(self, moving: "asyncio.Future[T]") -> None:
        # Its exception is looked at here, for a stream that has ended does not ask for it.
        if moving.cancelled() or moving.exception() is not None:
            self.drop()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
