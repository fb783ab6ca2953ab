"""The halves of a decoder layer around its attention, for the single row of a decode step.

One call from Python for each: at one row the calls cost as much as a quarter of the products.
"""

from collections.abc import Callable

import numpy as np
from numba.core.types import BaseTuple, Type
from numba.extending import overload

from engine.cpu.int8_kernels import Int8Rows, int8_row
from engine.cpu.jit import Floats, kernel
from engine.cpu.linear_kernels import linear_row
from engine.cpu.row_kernels import gate_silu, rms_norm, rotate

Three = tuple[Floats, Floats, Floats]
Weight = Floats | Int8Rows
Two = tuple[Floats, Floats]
Norm = tuple[Floats, float]
"""Its weight [hidden] and epsilon."""


def product(x: Floats, weight: Weight, out: Floats) -> None:
    """`out = weight · x`, by the kernel for such a weight: `_product_for` is what gets compiled."""
    raise TypeError("product is for compiled kernels only")


@overload(product, strict=False)
def _product_for(x: Type, weight: Type, out: Type) -> Callable[[Floats, Weight, Floats], None]:
    """Chosen when a kernel is compiled: its machine code knows one kind of weight."""
    if isinstance(weight, BaseTuple):
        return lambda x, weight, out: int8_row(x, weight[0], weight[1], out)
    return lambda x, weight, out: linear_row(x, weight, out)  # type: ignore[arg-type]


@kernel
def enter_attention(
    x: Floats,
    norm: Norm,
    weights: tuple[Weight, Weight, Weight],
    biases: Three,
    rotation: Two,
    out: Three,
) -> None:
    """Query, key and value, rotated, of the normed row `x` [1, hidden].

    `weights`, `biases` and `out` are of query, key, value; a bias of size 0 is none. `out` is [1,
    head, dim] each, `rotation` are the cosine and sine [1, dim].
    """
    normed = np.empty_like(x)
    rms_norm(x, norm[0], norm[1], normed)
    for part in range(3):
        flat = out[part].reshape(-1)
        product(normed[0], weights[part], flat)
        for i in range(biases[part].size):
            flat[i] += biases[part][i]
        if part < 2:
            rotate(out[part], rotation[0], rotation[1])


@kernel
def leave_attention(
    x: Floats,
    mixed: Floats,
    norm: Norm,
    weights: tuple[Weight, Weight, Weight, Weight],
    inner: Floats,
    out: Floats,
) -> None:
    """The row after the layer, `out` [1, hidden]: output projection and gated MLP, each added.

    `x` is the row before the layer, `mixed` [query head · dim] what attention gave; `weights` are
    of output, gate, up and down. `inner` [2, intermediate] is overwritten.
    """
    after = np.empty_like(x)
    product(mixed, weights[0], after[0])
    for i in range(x.size):
        after[0, i] += x[0, i]
    normed = np.empty_like(x)
    rms_norm(after, norm[0], norm[1], normed)
    gate, up = inner[0], inner[1]
    product(normed[0], weights[1], gate)
    product(normed[0], weights[2], up)
    gate_silu(gate, up)
    product(gate, weights[3], out[0])
    for i in range(x.size):
        out[0, i] += after[0, i]
