"""Copies of rows of bytes between two memories, without the GIL and at the speed of memcpy."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.cpu.jit import exact

Int64s = npt.NDArray[np.int64]
Rows = tuple[int, int, int]
"""Rows of bytes in planes: the first one's address, bytes from plane to plane and row to row."""


def _inlined(function: Any) -> Any:  # noqa: ANN401
    """numba's `intrinsic`, called without the typing context that it adds by itself."""
    return intrinsic(function)


@_inlined
def _copy(_typing: Any, _target: Any, _source: Any, _num_bytes: Any) -> Any:  # noqa: ANN401
    """The C library's memcpy, from address to address: any alignment, and 3 times as fast as the
    loop over words that numba makes."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:  # noqa: ANN401
        target, source = (builder.inttoptr(place, cgutils.voidptr_t) for place in given[:2])
        copy: Any = cgutils.raw_memcpy  # which has no types
        copy(builder, target, source, given[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@exact
def copy_runs(
    target: Rows,
    source: Rows,
    runs: tuple[Int64s, Int64s, Int64s],
    num_planes: int,
    row_bytes: int,
) -> None:
    """In every plane and for each of `runs` (first target row, first source row, number of rows),
    copy that many rows. Checks nothing: rows outside of either memory are written all the same.
    """
    to, to_plane, to_row = target
    at, at_plane, at_row = source
    targets, sources, lengths = runs
    for plane in range(num_planes):
        for run in range(len(lengths)):
            into = to + plane * to_plane + targets[run] * to_row
            out_of = at + plane * at_plane + sources[run] * at_row
            if to_row == row_bytes and at_row == row_bytes:
                _copy(into, out_of, lengths[run] * row_bytes)
            else:
                for row in range(lengths[run]):
                    _copy(into + row * to_row, out_of + row * at_row, row_bytes)


@exact
def are_inside(firsts: Int64s, lengths: Int64s, num_rows: int) -> bool:
    """Whether all runs lie in the first `num_rows` rows."""
    for run in range(len(lengths)):
        if firsts[run] < 0 or lengths[run] < 0 or firsts[run] + lengths[run] > num_rows:
            return False
    return True


def compile_kernels() -> None:
    """Call each once, on arrays of the types that copies pass."""
    memory, first = np.zeros(2, np.uint8), np.zeros(1, np.int64)
    rows = memory.ctypes.data, 1, 1
    copy_runs(rows, (rows[0] + 1, 1, 1), (first, first, first), 1, 1)
    are_inside(first, first, 1)
