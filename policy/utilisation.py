"""How full instances are, and how many a pool would need: for those who scale it."""

import math

import numpy as np

from policy.latency import LatencyModel
from policy.predict import prefill_wait_s
from policy.table import Bools, Floats, Table

TARGET = 0.7
"""Share of an instance that should be in use: what is left takes the bursts, and what an instance
that dies leaves to the others."""


def fullness(
    model: LatencyModel, table: Table, *, prefill_target_s: float, max_decoding: int
) -> Floats:
    """Of each instance: 1 is full, more waits. Whichever of these is the largest:

    the predicted seconds of prompts it has accepted, over `prefill_target_s`; answers it decodes or
    will decode, over the `max_decoding` that its batch holds; blocks that are in use.
    """
    waiting = prefill_wait_s(model, table) / prefill_target_s
    slots = (table.num_decoding + table.num_incoming) / max_decoding
    blocks = 1.0 - table.num_free_blocks / np.maximum(table.num_blocks, 1)
    full: Floats = np.maximum(waiting, np.maximum(slots, blocks))
    return full


def utilisation(full: Floats, pool: Bools) -> float:
    """Of a pool, 0 to 1: the mean of its instances; 0 when it has none."""
    return min(1.0, float(full[pool].mean())) if pool.any() else 0.0


def wanted_instances(full: Floats, pool: Bools) -> int:
    """So many would be used to TARGET by what the pool has to do now; at least 1."""
    # A hair less than what 0.7 / 0.7 may come to.
    return max(1, math.ceil(float(full[pool].sum()) / TARGET - 1e-9))
