"""The memory that payloads move through on their way between a pair group and the KV."""

import weakref
from collections import deque
from typing import Any

import numpy as np

from core.limits import MAX_KV_FRAME_BYTES

NUM_KEPT_BUFFERS = 4
"""Touched once, reused after: to fault in new pages costs as much as to move their bytes."""
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Staging:
    """Buffers of the largest payload's size; one that nobody looks at any more is lent again.

    A buffer comes back in whichever thread drops it last, which a deque allows.
    """

    def __init__(self) -> None:
        self._free: deque[Bytes] = deque(maxlen=NUM_KEPT_BUFFERS)

    def take(self) -> Bytes:
        """A whole buffer, with whatever was in it. Its owner passes it on to `lend`."""
        try:
            return self._free.popleft()
        except IndexError:
            # All of it costs nothing until it is written.
            return np.empty(MAX_KV_FRAME_BYTES, dtype=np.uint8)

    def lend(self, whole: Bytes, num_bytes: int) -> memoryview:
        """Its first bytes; `whole` is free again when these and all made of them are dropped."""
        part = whole[:num_bytes]
        weakref.finalize(part, self._free.append, whole).atexit = False
        return part.data
