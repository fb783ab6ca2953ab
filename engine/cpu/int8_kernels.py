"""Products with a weight of 8 bits; the rest of the arithmetic is that of float32."""

from typing import NamedTuple

import numpy as np

from engine.cpu.jit import Floats, Int8s, kernel


class Int8Rows(NamedTuple):
    """A weight [n, k] as kernels read it: row `o` is `values[o] · scales[o]`."""

    values: Int8s
    scales: Floats


@kernel
def int8_row(x: Floats, values: Int8s, scales: Floats, out: Floats) -> None:
    """`out[o] = scales[o] · (values[o] · x)`: [k], [n, k], [n], [n].

    One row of the weight at a time: four at once, as floats want it, take 1.5 times as long.
    """
    num_outputs, size = values.shape
    for o in range(num_outputs):
        a = np.float32(0)
        for i in range(size):
            a += x[i] * np.float32(values[o, i])
        out[o] = a * scales[o]


@kernel
def int8_rows(x: Floats, values: Int8s, scales: Floats, out: Floats) -> None:
    """`out[o, r] = scales[o] · (values[o] · x[r])`: [row, k], [n, k], [n], [n, row], two rows or
    more.

    `out` lies the other way round than results do. Written in place, a column of 8 rows whose
    length is a multiple of 4096 bytes shares one set of the L1 cache: 1.5 times as long.
    """
    num_rows = x.shape[0]
    num_outputs, size = values.shape
    for o in range(num_outputs):
        for row in range(0, num_rows, 2):
            # An odd last row goes with the one before, whose results come out the same again.
            first = min(row, num_rows - 2)
            a = b = np.float32(0)
            for i in range(size):
                w = np.float32(values[o, i])
                a += x[first, i] * w
                b += x[first + 1, i] * w
            out[o, first] = a * scales[o]
            out[o, first + 1] = b * scales[o]


@kernel
def to_floats(values: Int8s, scales: Floats, out: Floats) -> None:
    """`out[o] = scales[o] · values[o]`: [n, k], [n], [n, k]."""
    num_outputs, size = values.shape
    for o in range(num_outputs):
        for i in range(size):
            out[o, i] = np.float32(values[o, i]) * scales[o]
