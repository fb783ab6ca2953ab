"""The states of a KV block, and the sum every instance must show (law 2)."""

from collections.abc import Mapping
from enum import StrEnum


class BlockState(StrEnum):
    """Every block is in exactly one."""

    FREE = "free"
    CACHED = "cached"
    """Holds a prefix that nobody uses now; may be evicted."""
    OWNED = "owned"
    """A request computes on it here."""
    LEASED = "leased"
    """Computed; kept readable for a decode instance until release or expiry."""
    INCOMING = "incoming"
    """Reserved for KV that is being fetched."""
    QUARANTINED = "quarantined"
    """Given up, but a reader or writer has not ended yet."""
    SWAPPED = "swapped"
    """Its content waits in host memory."""


IDLE_STATES = frozenset({BlockState.FREE, BlockState.CACHED})


def leak_report(counts: Mapping[BlockState, int], num_blocks: int) -> str | None:
    """Why an idle instance with these counts breaks law 2; None when it does not.

    Blocks in SWAPPED live in host memory and are not among `num_blocks`.
    """
    on_device = sum(n for state, n in counts.items() if state is not BlockState.SWAPPED)
    if on_device != num_blocks:
        return f"{on_device} blocks accounted for, {num_blocks} exist"
    busy = {str(s): n for s, n in counts.items() if n and s not in IDLE_STATES}
    return f"blocks not returned while idle: {busy}" if busy else None
