"""The halves of a decoder layer around its attention, for the single row of a decode step.

One call from Python for each: at one row the calls cost as much as a quarter of the products.
"""

import numpy as np

from engine.cpu.jit import Floats, kernel
from engine.cpu.linear_kernels import linear_row
from engine.cpu.row_kernels import gate_silu, rms_norm, rotate

Three = tuple[Floats, Floats, Floats]
Two = tuple[Floats, Floats]
Norm = tuple[Floats, float]
"""Its weight [hidden] and epsilon."""


@kernel
def enter_attention(
    x: Floats, norm: Norm, weights: Three, biases: Three, rotation: Two, out: Three
) -> None:
    """Query, key and value, rotated, of the normed row `x` [1, hidden].

    `weights`, `biases` and `out` are of query, key, value; a bias of size 0 is none. `out` is [1,
    head, dim] each, `rotation` are the cosine and sine [1, dim].
    """
    normed = np.empty_like(x)
    rms_norm(x, norm[0], norm[1], normed)
    for part in range(3):
        flat = out[part].reshape(-1)
        linear_row(normed[0], weights[part], flat)
        for i in range(biases[part].size):
            flat[i] += biases[part][i]
        if part < 2:
            rotate(out[part], rotation[0], rotation[1])


@kernel
def leave_attention(
    x: Floats, mixed: Floats, norm: Norm, weights: Three, down: Floats, out: Floats
) -> None:
    """The row after the layer, `out` [1, hidden]: output projection and gated MLP, each added.

    `x` is the row before the layer, `mixed` [query head · dim] what attention gave; `weights` are
    of output, gate and up.
    """
    after = np.empty_like(x)
    linear_row(mixed, weights[0], after[0])
    for i in range(x.size):
        after[0, i] += x[0, i]
    normed = np.empty_like(x)
    rms_norm(after, norm[0], norm[1], normed)
    gate = np.empty(weights[1].shape[0], np.float32)
    up = np.empty(weights[2].shape[0], np.float32)
    linear_row(normed[0], weights[1], gate)
    linear_row(normed[0], weights[2], up)
    gate_silu(gate, up)
    linear_row(gate, down, out[0])
    for i in range(x.size):
        out[0, i] += after[0, i]
