"""What happens to rows between the products: norms, rotation, gates. In one pass over each."""

import numpy as np

from engine.cpu.jit import Floats, exp, kernel


@kernel
def rms_norm(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """Rows [row, dim] over their root mean square, times `weight` [dim]."""
    num_rows, dim = x.shape
    for row in range(num_rows):
        squares = np.float32(0)
        for i in range(dim):
            squares += x[row, i] * x[row, i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            out[row, i] = x[row, i] * scale * weight[i]


@kernel
def rotate(x: Floats, cos: Floats, sin: Floats) -> None:
    """Rotary embedding of heads [row, head, dim] in place; `cos` and `sin` are [row, dim]."""
    num_rows, num_heads, dim = x.shape
    half = dim // 2
    for row in range(num_rows):
        for head in range(num_heads):
            for i in range(half):
                a, b = x[row, head, i], x[row, head, i + half]
                x[row, head, i] = a * cos[row, i] - b * sin[row, i]
                x[row, head, i + half] = b * cos[row, i + half] + a * sin[row, i + half]


@kernel
def gate_silu(gate: Floats, up: Floats) -> None:
    """`gate = silu(gate) · up`, flat, in place."""
    for i in range(gate.size):
        gate[i] = gate[i] / (np.float32(1) + exp(-gate[i])) * up[i]
