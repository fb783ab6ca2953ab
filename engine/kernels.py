"""Which attention kernels there are for a device."""

import importlib.util

import torch

from engine.attention import Kernels
from engine.cpu.paged_decode import paged_decode


def kernels_for(device: str, dtype: str) -> Kernels:
    """The fastest that fit; both parts may be missing."""
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return _triton_kernels(device)
    if kind == "cpu" and dtype == "float32":
        return Kernels(decode=paged_decode)
    return Kernels()


def _triton_kernels(device: str) -> Kernels:
    # Here, so that a machine without a GPU needs no Triton.
    from engine.cuda.paged_decode import PROGRAMS_PER_PROCESSOR, PagedDecode
    from engine.cuda.paged_prefill import paged_prefill

    num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return Kernels(
        prefill=paged_prefill, decode=PagedDecode(PROGRAMS_PER_PROCESSOR * num_processors)
    )
