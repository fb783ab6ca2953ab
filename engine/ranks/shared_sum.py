"""Sums over the ranks of a stage through memory that all of them have mapped.

Each rank has a word that counts the sums it has given its part to, and two slots that it fills in
turn. A sum is: fill a slot, count, wait until every other rank has counted, add the slots in order
of ranks. Two slots are enough: who fills one again has seen everybody count the sum in between,
and nobody does before it has read the sum before that.
"""

from collections.abc import Callable

import numpy as np
import torch

from core.clock import Clock
from engine.cpu.jit import Floats, exact
from engine.ranks.atomics import add_ordered, load_acquire, sleep_while, store_ordered, wake_all
from engine.ranks.errors import GroupBroken

SLOT_VALUES = 64 * 1024
"""What one exchange carries, 256 KiB; longer tensors take several."""
WORD_BYTES = 128
"""Apart, so that no two ranks write to one cache line or to a pair of them."""
SLEEPERS = 4
"""Behind each count, in bytes: how many ranks sleep until it changes."""
HEADER_BYTES = 8192
"""Room for the words of 64 ranks; slots begin on a page."""
SPINS = 100_000
"""Looks at a count before going to sleep: 26 microseconds of a Zen 5 core. Sleep costs 12 more on
an idle core; on a busy one it is what lets the other rank have ours. Sums of one row 150
microseconds apart took 17 in the median with 5,000 looks and 5 with 100,000; beside a busy process
166 and 190, but 267 with 400,000."""
ALL_CAME = -1


def sums_bytes(num_ranks: int) -> int:
    """Size of the shared file of a stage of `num_ranks` ranks."""
    return HEADER_BYTES + 2 * num_ranks * SLOT_VALUES * np.dtype(np.float32).itemsize


class SharedSum:
    """One rank's view of the memory; float32 tensors only. One thread calls it."""

    def __init__(
        self,
        memory: torch.Tensor,
        rank: int,
        num_ranks: int,
        timeout_s: float,
        has_ended: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`memory` is `sums_bytes(num_ranks)` shared bytes, zeros before the first rank's first
        sum; `rank` counts within the stage. While waiting, a rank asks `has_ended` whether the
        others are known to be gone. Compiles the kernels, which may take a second.
        """
        self._memory = memory.numpy()
        slots = self._memory[HEADER_BYTES:].view(np.float32)
        self._slots: Floats = slots.reshape(2, num_ranks, SLOT_VALUES)
        self._words: int = self._memory.ctypes.data
        self._rank = rank
        self._timeout_s = timeout_s
        self._has_ended = has_ended
        self._clock = clock
        self._count = 0
        compile_kernels()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum in place, in order of ranks; every rank gets the same bits.

        Raises GroupBroken when another rank is gone or does not come in time.
        """
        flat = tensor.view(-1).numpy()
        for start in range(0, len(flat), SLOT_VALUES):
            self._exchange(flat[start : start + SLOT_VALUES])

    def _exchange(self, values: Floats) -> None:
        # Counts wrap around as the words do, after a week of steps.
        self._count = (self._count + 1) % 2**32
        given = values, self._slots, self._words, self._rank, self._count
        missing = exchange(*given)
        if missing != ALL_CAME:
            self._wait(values, missing)

    def _wait(self, values: Floats, missing: int) -> None:
        deadline_s = self._clock.now_s() + self._timeout_s
        while missing != ALL_CAME:
            if self._has_ended():
                raise GroupBroken("sum over a stage: another rank has ended")
            if self._clock.now_s() >= deadline_s:
                raise GroupBroken(
                    f"sum over a stage: rank {missing} of it did not come within "
                    f"{self._timeout_s} s"
                )
            missing = collect(values, self._slots, self._words, self._count)


@exact
def exchange(values: Floats, slots: Floats, words: int, rank: int, count: int) -> int:
    """Give our part, then `collect`."""
    slots[count & 1, rank, : len(values)] = values
    word = words + rank * WORD_BYTES
    store_ordered(word, np.int32(count))
    # Whoever has not told us by now that it sleeps will see our count before it does.
    if load_acquire(word + SLEEPERS) != 0:
        wake_all(word)
    return collect(values, slots, words, count)


@exact
def collect(values: Floats, slots: Floats, words: int, count: int) -> int:
    """The sum of all parts, and ALL_CAME; or a rank that has not come, and nothing is changed."""
    before = np.int32(count - 1)
    for rank in range(slots.shape[1]):
        if not has_come(words + rank * WORD_BYTES, before):
            return rank
    parts = slots[count & 1]
    for rank in range(parts.shape[0]):
        part = parts[rank]
        if rank == 0:
            values[:] = part[: len(values)]
        else:
            for i in range(len(values)):
                values[i] += part[i]
    return ALL_CAME


@exact
def has_come(word: int, before: np.int32) -> bool:
    """Wait for a while until a rank's count is no longer `before`.

    It is never another: no rank is two sums ahead of the others, or behind.
    """
    for _ in range(SPINS):
        if load_acquire(word) != before:
            return True
    add_ordered(word + SLEEPERS, np.int32(1))
    sleep_while(word, before)
    add_ordered(word + SLEEPERS, np.int32(-1))
    return bool(load_acquire(word) != before)


def compile_kernels() -> None:
    """Call each once, alone, on arrays of the types that a sum passes."""
    memory = np.zeros(WORD_BYTES, np.uint8)
    slots, values = np.zeros((2, 1, 1), np.float32), np.zeros(1, np.float32)
    exchange(values, slots, memory.ctypes.data, 0, 1)
    collect(values, slots, memory.ctypes.data, 1)
