"""Messages between the leader and one rank, over a socket that only these two processes hold."""

import socket
import struct

from core.clock import Clock, MonotonicClock
from engine.ranks.errors import ChannelClosed, ChannelStalled, FrameError

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A step of 64 answers and a chunk over 8,192 tokens each in blocks of one is 2.2 MB."""
_LENGTH = struct.Struct("<I")


class Channel:
    """Whole frames, each behind its length. Owns the socket."""

    def __init__(self, end: socket.socket, clock: Clock | None = None) -> None:
        self._end = end
        self._clock = clock or MonotonicClock()

    def fileno(self) -> int:
        """Of the socket."""
        return self._end.fileno()

    def send(self, frame: bytes, timeout_s: float) -> None:
        """Hand one frame to the other end.

        Raises:
            ChannelClosed: nobody is there.
            ChannelStalled: it did not take the frame in time, and the channel is of no more use.
        """
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameError(f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
        self._end.settimeout(timeout_s)
        try:
            self._end.sendall(_LENGTH.pack(len(frame)) + frame)
        except TimeoutError as error:
            raise ChannelStalled(f"frame not taken within {timeout_s} s") from error
        except OSError as error:
            raise ChannelClosed(f"channel: {error}") from error

    def receive(self, timeout_s: float | None) -> bytes:
        """The next frame; None waits as long as the other end lives.

        Raises:
            ChannelClosed: nobody is there.
            ChannelStalled: no whole frame came in time.
        """
        deadline_s = None if timeout_s is None else self._clock.now_s() + timeout_s
        try:
            (num_bytes,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline_s))
            if num_bytes > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {num_bytes} bytes, at most {MAX_FRAME_BYTES}")
            return self._exactly(num_bytes, deadline_s)
        except TimeoutError as error:
            raise ChannelStalled(f"no frame within {timeout_s} s") from error
        except OSError as error:
            raise ChannelClosed(f"channel: {error}") from error

    def close(self) -> None:
        """The other end reads the end of file."""
        self._end.close()

    def _exactly(self, num_bytes: int, deadline_s: float | None) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            left_s = None if deadline_s is None else deadline_s - self._clock.now_s()
            if left_s is not None and left_s <= 0:
                raise TimeoutError
            self._end.settimeout(left_s)
            part = self._end.recv(min(num_bytes - len(data), 1 << 20))
            if not part:
                raise ChannelClosed("channel: the other end is closed")
            data += part
        return bytes(data)
