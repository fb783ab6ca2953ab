"""Which attention kernels there are for a device."""

from engine.attention import Kernels


def kernels_for(device: str, dtype: str) -> Kernels:
    """The fastest that fit; both parts may be missing."""
    del device, dtype
    return Kernels()
