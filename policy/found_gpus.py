"""Which entry of the catalogue a GPU is that was found on a host."""

from collections.abc import Mapping

from policy.hardware import Gpu

MAKER = "NVIDIA "
"""Drivers before 470 leave it out."""
MEMORY_TOLERANCE = 0.05
"""Between what drivers print for one kind; a slice of a GPU, or a kind of the same name with other
memory, is further off."""


def entry_of(gpus: Mapping[str, Gpu], nvml_name: str, memory_bytes: int | None) -> str | None:
    """Its key; None for one that the catalogue does not have."""
    wanted = nvml_name.removeprefix(MAKER)
    named = [key for key, gpu in gpus.items() if gpu.nvml_name.removeprefix(MAKER) == wanted]
    near = (key for key in named if _is_near(memory_bytes, gpus[key].memory_bytes))
    return next(near, None) if wanted else None


def _is_near(memory_bytes: int | None, expected_bytes: int) -> bool:
    if memory_bytes is None:
        return True
    return abs(memory_bytes - expected_bytes) <= MEMORY_TOLERANCE * expected_bytes
