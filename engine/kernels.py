"""Which attention kernels there are for a device."""

import importlib.util

import torch

from engine.attention import Kernels
from engine.cpu.paged_decode import paged_decode


def kernels_for(device: str, dtype: str) -> Kernels:
    """The fastest that fit; any part may be missing."""
    if runs_triton(device):
        return _triton_kernels(device)
    if torch.device(device).type == "cpu" and dtype == "float32":
        return Kernels(decode=paged_decode)
    return Kernels()


def runs_triton(device: str) -> bool:
    """Whether `engine.cuda` has kernels for it; only then may their modules be imported."""
    return torch.device(device).type == "cuda" and bool(importlib.util.find_spec("triton"))


def _triton_kernels(device: str) -> Kernels:
    # Here, so that a machine without a GPU needs no Triton.
    from engine.cuda.paged_decode import PROGRAMS_PER_PROCESSOR, PagedDecode
    from engine.cuda.paged_prefill import paged_prefill
    from engine.cuda.write_kv import write_kv

    num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return Kernels(
        prefill=paged_prefill,
        decode=PagedDecode(PROGRAMS_PER_PROCESSOR * num_processors),
        write=write_kv,
    )
