"""Matrix times vector at the speed of memory: what a decode step of one answer consists of."""

import numpy as np

from engine.cpu.jit import Floats, kernel


@kernel
def linear_row(x: Floats, weight: Floats, out: Floats) -> None:
    """`out[o] = weight[o] · x`: [k], [n, k], [n].

    Four rows of the weight at once: one alone waits for its own sum, and reads 34 GB/s where four
    read 42, all that one core gets from memory (znver5, sum of an array: 41).
    """
    num_outputs, size = weight.shape
    num_fours = num_outputs - num_outputs % 4
    for o in range(0, num_fours, 4):
        a = b = c = d = np.float32(0)
        for i in range(size):
            v = x[i]
            a += v * weight[o, i]
            b += v * weight[o + 1, i]
            c += v * weight[o + 2, i]
            d += v * weight[o + 3, i]
        out[o] = a
        out[o + 1] = b
        out[o + 2] = c
        out[o + 3] = d
    for o in range(num_fours, num_outputs):
        a = np.float32(0)
        for i in range(size):
            a += x[i] * weight[o, i]
        out[o] = a


@kernel
def linear_rows(x: Floats, weight: Floats, out: Floats) -> None:
    """`out[r, o] = weight[o] · x[r]`: [row, k], [n, k], [row, n]; for a few rows.

    Two rows share each read of the weight; further pairs find its four rows in the L1 cache.
    """
    num_rows = x.shape[0]
    num_outputs, size = weight.shape
    num_fours = num_outputs - num_outputs % 4
    for o in range(0, num_fours, 4):
        for row in range(0, num_rows, 2):
            # An odd last row goes with the one before, whose results come out the same again.
            first = min(row, num_rows - 2)
            s = first + 1
            a = b = c = d = np.float32(0)
            e = f = g = h = np.float32(0)
            for i in range(size):
                v, w = x[first, i], x[s, i]
                a += v * weight[o, i]
                b += v * weight[o + 1, i]
                c += v * weight[o + 2, i]
                d += v * weight[o + 3, i]
                e += w * weight[o, i]
                f += w * weight[o + 1, i]
                g += w * weight[o + 2, i]
                h += w * weight[o + 3, i]
            out[first, o], out[first, o + 1], out[first, o + 2], out[first, o + 3] = a, b, c, d
            out[s, o], out[s, o + 1], out[s, o + 2], out[s, o + 3] = e, f, g, h
    for o in range(num_fours, num_outputs):
        for row in range(num_rows):
            a = np.float32(0)
            for i in range(size):
                a += x[row, i] * weight[o, i]
            out[row, o] = a
