"""When an instance takes work of the other phase, and when it returns (Splitwise, section 4.4).

Nobody changes its role: it helps while its own pool can spare it, and leaves when it has no such
work any more. Two thresholds, so that it does not come and go.
"""

from typing import NamedTuple

import numpy as np

from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE, Bools, Floats, Phase, Table


class Thresholds(NamedTuple):
    """In seconds that a request would wait in the best place of its pool."""

    above_s: float
    """One more instance helps from here on."""
    below_s: float
    """Helpers without such work leave from here down."""


def takes(table: Table, phase: int) -> Bools:
    """Who serves a phase: by role, or as a helper."""
    own = PREFILL_ROLE if phase == Phase.PREFILL else DECODE_ROLE
    serves: Bools = (table.role == own) | (table.role == MIXED_ROLE) | table.helps
    return serves


def busy_with_other_phase(table: Table, phase: int) -> Bools:
    """Who has work of this phase."""
    prompts: Bools = table.num_prefilling > 0
    answers: Bools = (table.num_decoding + table.num_incoming) > 0
    return prompts if phase == Phase.PREFILL else answers


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
    """Who has helped this phase and goes back to its own alone."""
    foreign = DECODE_ROLE if phase == Phase.PREFILL else PREFILL_ROLE
    helpers: Bools = table.helps & (table.role == foreign) & ~busy_with_other_phase(table, phase)
    others = able & takes(table, phase) & ~helpers
    if not others.any() or np.min(np.where(others, waits_s, np.inf)) >= thresholds.below_s:
        return np.zeros_like(helpers)
    return helpers
