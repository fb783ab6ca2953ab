"""Moves the small arrays of a step to its device together."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy.typing as npt
import torch

ALIGNED_BYTES = 16
"""What each array begins at a multiple of: Triton compiles a kernel once more for those that do
not."""


def to_device(arrays: Sequence[npt.NDArray[Any]], device: str) -> list[torch.Tensor]:
    """Tensors of the same shapes and dtypes; on a CPU they share the arrays' memory."""
    tensors = [torch.from_numpy(array) for array in arrays]
    return tensors if torch.device(device).type == "cpu" else packed_copy(tensors, device)


def packed_copy(tensors: Sequence[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Copies of contiguous tensors, as views of one buffer that is copied once.

    On CUDA the copy is queued and not waited for, as copies from memory that is not pinned are.
    """
    sizes = [-(-tensor.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES for tensor in tensors]
    firsts = [0, *accumulate(sizes)]
    is_cuda = torch.device(device).type == "cuda"
    # torch gives pinned memory to nobody else before the copies queued from it are done.
    host = torch.empty(firsts[-1], dtype=torch.uint8, pin_memory=is_cuda)
    for part, tensor in zip(_views(host, firsts, tensors), tensors, strict=True):
        part.copy_(tensor)
    return _views(host.to(device, non_blocking=True), firsts, tensors)


def _views(
    buffer: torch.Tensor, firsts: Sequence[int], like: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    return [
        buffer[first : first + one.nbytes].view(one.dtype).view(one.shape)
        for first, one in zip(firsts, like, strict=False)
    ]
