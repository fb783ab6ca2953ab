"""When an instance takes work of the other phase, and when it returns (Splitwise, section 4.4).

Nobody changes its role: it takes work of the other phase while its own pool can spare it, and
takes none any more once the others could do what it has, too; what it has begun it ends. Two
thresholds, so that it does not come and go.
"""

from typing import NamedTuple

import numpy as np

from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE, Bools, Floats, Phase, Table


class Thresholds(NamedTuple):
    """In seconds that a request would wait in the best place of its pool."""

    above_s: float
    """One more instance helps from here on."""
    below_s: float
    """Helpers leave from here down, their own work of the phase counted in: else those that share
    a load with the pool would leave it alone again at once."""


def takes(table: Table, phase: int) -> Bools:
    """Who serves a phase: by role, or as a helper."""
    own = PREFILL_ROLE if phase == Phase.PREFILL else DECODE_ROLE
    serves: Bools = (table.role == own) | (table.role == MIXED_ROLE) | table.helps
    return serves


def next_helper(
    table: Table, able: Bools, phase: int, waits_s: Floats, thresholds: Thresholds
) -> int:
    """Who begins to help a phase now; -1 for nobody.

    One at a time, the least busy with its own phase, and never the last of its own pool: that
    would only move the shortage.
    """
    serving = able & takes(table, phase)
    if serving.any() and np.min(np.where(serving, waits_s, np.inf)) <= thresholds.above_s:
        return -1
    spare = able & ~serving
    if spare.sum() < 2:
        return -1
    if phase == Phase.PREFILL:
        own_work = table.num_decoding + table.num_incoming
    else:
        own_work = table.num_prefilling
    return int(np.argmin(np.where(spare, own_work.astype(np.float64), np.inf)))


def leaving_helpers(
    table: Table, able: Bools, phase: int, waits_s: Floats, thresholds: Thresholds
) -> Bools:
    """Who has helped this phase and takes only its own again."""
    foreign = DECODE_ROLE if phase == Phase.PREFILL else PREFILL_ROLE
    helpers: Bools = table.helps & (table.role == foreign)
    others = able & takes(table, phase) & ~helpers
    least_s = np.min(np.where(others, waits_s, np.inf))
    leaving: Bools = helpers & (least_s + waits_s < thresholds.below_s)
    return leaving
