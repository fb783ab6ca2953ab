"""Decode's tables of `policy.step_times`: lines of seconds, rounded once to whole picoseconds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from policy.step_times import NEVER, PS_PER_S
from policy.table import Floats, Ints

MAX_BATCH = 1024
"""Answers in one step that a table knows where nothing says otherwise: four times what one
instance takes by default (`planner.sim.spec.Kind.max_batch`), so that searches may go higher."""


class DecodeTable(NamedTuple):
    """The three decode tables of `StepTimes`, of equal shape [batch, segment]."""

    starts: Ints
    base_ps: Ints
    slope_ps: Ints


def batches(max_batch: int = MAX_BATCH) -> Floats:
    """1 to `max_batch`, as a column: what functions of the batch are asked with."""
    return np.arange(1, max_batch + 1, dtype=np.float64)[:, None]


def decode_table(starts: ArrayLike, at_start_s: Floats, per_token_s: ArrayLike) -> DecodeTable:
    """From lines over the context tokens after the step; rows are batches of 1, 2, ...

    In segment j a step takes at_start_s[row, j] + per_token_s[row, j] · (context − starts[row, j]).
    Both the value at the start and the slope are rounded to the nearest picosecond, so a step is
    off by at most (1 + context within the segment) / 2 picoseconds. `starts` and `per_token_s`
    may be given once for all rows. Slopes must not be negative: a leap's bounds rely on it.
    """
    shape = at_start_s.shape
    start = np.broadcast_to(np.asarray(starts, dtype=np.int64), shape)
    slope_ps = np.rint(np.broadcast_to(per_token_s, shape) * PS_PER_S).astype(np.int64)
    assert (slope_ps >= 0).all(), "a longer context never makes a step quicker"
    assert (start[:, 0] == 0).all(), "the first segment starts at no context"
    # Time has to move on: no step takes less than a picosecond.
    at_start_ps = np.maximum(np.rint(at_start_s * PS_PER_S), 1).astype(np.int64)
    is_used = start < NEVER
    base_ps = np.where(is_used, at_start_ps - slope_ps * np.where(is_used, start, 0), 0)
    return DecodeTable(
        *(np.vstack([row_0, part]) for row_0, part in _rows(start, base_ps, slope_ps))
    )


def _rows(start: Ints, base_ps: Ints, slope_ps: Ints) -> list[tuple[Ints, Ints]]:
    """Each table with the row of no batch, which holds 0, that goes before it."""
    none = np.zeros((1, start.shape[1]), dtype=np.int64)
    unused = none.copy()
    unused[0, 1:] = NEVER
    return [(unused, start), (none, base_ps), (none, slope_ps)]


class Curve(NamedTuple):
    """Seconds over prompt tokens: the two prefill columns of `StepTimes`."""

    tokens: Floats
    seconds: Floats


def line(base_s: float, per_token_s: float) -> Curve:
    """A straight one: two knots are enough, its slope goes on beyond them."""
    tokens = np.array([0.0, 1024.0])
    return Curve(tokens, base_s + per_token_s * tokens)
