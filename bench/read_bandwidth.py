"""How fast one thread can read memory: the limit of a decode step, which reads every weight."""

import statistics
from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
import torch

from core.clock import Clock

Loop = Callable[[], object]

NUM_FLOATS = 1 << 27
"""512 MiB of float32: as large as the default model, and many times any cache."""
MATRIX_COLUMNS = 4096
NUM_PASSES = 3
"""Of each loop, whenever it is measured."""


class ReadLoops:
    """Several ways to read the same memory; the fastest counts as what the machine can do."""

    def __init__(self, clock: Clock, *, num_floats: int = NUM_FLOATS) -> None:
        """Takes the memory and runs every loop once: pages mapped, kernels compiled."""
        self._clock = clock
        self._floats = floats = torch.ones(num_floats)
        matrix, vector = floats.view(-1, MATRIX_COLUMNS), torch.ones(MATRIX_COLUMNS)
        array = floats.numpy()
        self.loops: dict[str, Loop] = {
            "torch.sum": lambda: torch.sum(floats),
            "torch.dot": lambda: torch.dot(floats, floats),
            "torch.mv": lambda: torch.mv(matrix, vector),
            "numba": lambda: _sum(array),
        }
        self._times_s: dict[str, list[float]] = {name: [] for name in self.loops}
        for loop in self.loops.values():
            loop()

    def measure(self) -> None:
        """Run every loop a few times in this thread, which must be set to one thread."""
        for name, loop in self.loops.items():
            for _ in range(NUM_PASSES):
                started_s = self._clock.now_s()
                loop()
                self._times_s[name].append(self._clock.now_s() - started_s)

    def best(self) -> tuple[str, list[float]]:
        """The loop with the best median, and its bytes per second each time."""
        name = min(self._times_s, key=lambda name: statistics.median(self._times_s[name]))
        return name, [self._floats.nbytes / time_s for time_s in self._times_s[name]]


@numba.njit(fastmath=True)
def _sum(array: npt.NDArray[np.float32]) -> np.float32:
    """Four streams with sums of their own: no addition waits for another's, and more lines are on
    their way from memory than one stream would ask for."""
    quarter = len(array) // 4
    first = second = third = fourth = np.float32(0)
    for i in range(quarter):
        first += array[i]
        second += array[i + quarter]
        third += array[i + 2 * quarter]
        fourth += array[i + 3 * quarter]
    return first + second + third + fourth
