"""The TCP connection between the two ends of a pair group: they meet over it, and miss each other.

torch's own TCPStore would serve for meeting, but its client waits without end for a server that
accepts and then says nothing. This one is a store for two, gone with either of them: as long as
both live it stays open, and its end tells each at once that the other has left.
"""

import asyncio
import struct
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from core.errors import PeerLost

MAX_KEYS = 32
MAX_VALUE_BYTES = 4096
"""Gloo says one address of some 200 bytes, NCCL one id of 128."""
_SIZES = struct.Struct(">HH")


class PairStore(Store):
    """What both ends have said. Read and written by torch in the group's thread, whose every wait
    is bounded; `heard` and `lose` come from the event loop."""

    def __init__(self, say: Callable[[str, bytes], None], timeout_s: float) -> None:
        """`say` tells the other end; called in the group's thread."""
        super().__init__()
        self.set_timeout(timedelta(seconds=timeout_s))
        self._say = say
        self._timeout_s = timeout_s
        self._values: dict[str, Future[bytes]] = {}
        self._lost: PeerLost | None = None

    def set(self, key: str, value: bytes | str) -> None:
        """Ours; said to the other end."""
        told = value if isinstance(value, bytes) else value.encode()
        self.heard(key, told)
        self._say(key, told)

    def get(self, key: str) -> bytes:
        """Whichever end said it. Raises PeerLost."""
        value = self._values.setdefault(key, Future())
        if self._lost is not None and not value.done():
            raise self._lost
        try:
            return value.result(self._timeout_s)
        except TimeoutError:
            raise PeerLost(f"a pair group's other end was silent for {self._timeout_s} s") from None

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until all are said."""
        for key in keys:
            self.get(key)

    def heard(self, key: str, value: bytes) -> None:
        """One value; a second one for the same key does not count."""
        future = self._values.setdefault(key, Future())
        if not future.done():
            future.set_result(value)

    def lose(self, error: PeerLost) -> None:
        """The other end will say nothing more."""
        # First: a `get` that makes its future after the loop below has passed sees it.
        self._lost = error
        for future in list(self._values.values()):
            if not future.done():
                future.set_exception(error)

    @property
    def num_values(self) -> int:
        """Said or asked for."""
        return len(self._values)


class PairLine(asyncio.Protocol):
    """One end of the connection; owned by the event loop."""

    def __init__(self, on_lost: Callable[[], None], timeout_s: float) -> None:
        """`on_lost` is called once, when the connection has ended, from either side."""
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self.store = PairStore(self._say, timeout_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Of asyncio: key and value, each after its size."""
        self._received += data
        while len(self._received) >= _SIZES.size:
            num_key_bytes, num_value_bytes = _SIZES.unpack_from(self._received)
            stop = _SIZES.size + num_key_bytes + num_value_bytes
            if max(num_key_bytes, num_value_bytes) > MAX_VALUE_BYTES:
                return self.close()
            if len(self._received) < stop:
                return None
            key = bytes(self._received[_SIZES.size : _SIZES.size + num_key_bytes])
            value = bytes(self._received[stop - num_value_bytes : stop])
            del self._received[:stop]
            if self.store.num_values >= MAX_KEYS:
                return self.close()
            self.store.heard(key.decode(errors="replace"), value)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self.store.lose(PeerLost("the other end of a pair group has left"))
        self._on_lost()

    def close(self) -> None:
        """Leave; what waits on the store is told at once."""
        self.store.lose(PeerLost("this end of a pair group was closed"))
        if self._transport is not None:
            self._transport.abort()

    def _say(self, key: str, value: bytes) -> None:
        told = key.encode()
        message = _SIZES.pack(len(told), len(value)) + told + value
        self._loop.call_soon_threadsafe(self._write, message)

    def _write(self, message: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(message)
