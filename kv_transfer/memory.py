"""How this process treats memory that it gave back."""

import ctypes
import ctypes.util
import logging

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
LARGEST_KEPT_BYTES = 32 * 1024 * 1024
"""The most that the C library allows; frames and payloads are at most 4 MiB."""
KEPT_BYTES = 256 * 1024 * 1024
"""Freed memory that is not given back to the kernel."""


def keep_freed_memory() -> None:
    """Have the C library reuse the memory of frames and payloads.

    By default it may map each one anew: the kernel then zeroes every page of every frame, which
    cost more than all copies together. Measured: a gRPC stream of 4 MiB frames through loopback
    moved 2.0 GB/s before, 4.3 after. Of the whole process, so its entry point decides.
    """
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    mallopt = getattr(library, "mallopt", None)
    if mallopt is None:
        logger.info("this C library cannot keep freed memory: KV moves slower")
        return
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
