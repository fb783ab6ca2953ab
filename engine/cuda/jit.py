"""Triton's compiler with types, and what every kernel here shares."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
"""Kernels use exp2, which the hardware has: scores are scaled by this beforehand."""

MIN_DOT = 16
"""Smallest side of a tile that Triton's matrix product takes."""

Kernel = Any
"""Launched as `kernel[grid](arguments)`."""


def kernel(*unspecialised: str) -> Callable[[Callable[..., None]], Kernel]:
    """Compile the decorated function for each set of its constants.

    Launches say `enable_fp_fusion`: its default differs between versions, and some warn of that.

    `unspecialised` are integers that change from step to step: Triton would compile once more for
    those that are 1, and for those that 16 divides.
    """

    def compiled(function: Callable[..., None]) -> Kernel:
        return triton.jit(function, do_not_specialize=unspecialised)

    return compiled


def padded(size: int, least: int = MIN_DOT) -> int:
    """The power of two that holds `size`: Triton's tiles have no other sizes."""
    return max(least, 1 << (size - 1).bit_length())


def product_dtype(like: torch.Tensor) -> Any:  # noqa: ANN401  Triton has no types
    """In which Triton multiplies matrices of this tensor's dtype.

    Its interpreter, which is what runs a kernel on CPU tensors, multiplies bfloat16 as integers.
    """
    if not like.is_cuda:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16}.get(like.dtype, tl.bfloat16)
