"""Decode's tables: rounding, segments, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.decode_table import batches, decode_table, line
from policy.step_times import NEVER, PS_PER_S, StepTimes, curve_s, decode_ps, max_batch


def times(starts: list[int], at_start_s: list[list[float]], per_token_s: object) -> StepTimes:
    """Only decode is asked about."""
    table = decode_table(starts, np.array(at_start_s), per_token_s)  # type: ignore[arg-type]
    curve = line(0.01, 0.001)
    return StepTimes(
        *curve, 0.0, 1, 0.0, 0.0, 0.0, table.starts, table.base_ps, table.slope_ps, 0.0, 0.0
    )


CASES = [
    # id                               batch, context, seconds
    ("one answer, no context", 1, 0, 0.020),
    ("one answer", 1, 999, 0.020 + 999e-6),
    ("at a start the next one holds", 1, 1000, 0.021),
    ("beyond the last start", 1, 3000, 0.021 + 2000 * 5e-6),
    ("two answers", 2, 1500, 0.033 + 500 * 5e-6),
]


@pytest.mark.parametrize(
    ("batch", "context", "want_s"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_segments(batch: int, context: int, want_s: float) -> None:
    found = times([0, 1000], [[0.020, 0.021], [0.030, 0.033]], [1e-6, 5e-6])
    assert decode_ps(found, batch, context) == round(want_s * PS_PER_S)


def test_row_0_is_of_no_batch() -> None:
    found = times([0, 1000], [[0.02, 0.021]], [1e-6, 1e-6])
    assert max_batch(found) == 1
    assert found.decode_base_ps[0].tolist() == found.decode_slope_ps[0].tolist() == [0, 0]
    assert found.decode_starts[0].tolist() == [0, NEVER]


@given(
    start=st.integers(1, 10**6),
    rise=st.floats(0.0, 1e-6),
    steeper=st.floats(0.0, 1e-6),
    base_s=st.floats(1e-5, 10.0),
    context=st.integers(0, 2 * 10**6),
)
def test_rounding_is_bounded(
    start: int, rise: float, steeper: float, base_s: float, context: int
) -> None:
    slopes = [rise, rise + steeper]
    found = times([0, start], [[base_s, base_s + rise * start]], slopes)
    inside = context if context < start else context - start
    exact_s = base_s + min(context, start) * rise + max(0, context - start) * slopes[1]
    off_ps = abs(decode_ps(found, 1, context) - exact_s * PS_PER_S)
    # Half a picosecond for the value at the start and for each token after it, and a float's own.
    assert off_ps <= (1 + inside) / 2 + exact_s * PS_PER_S * 1e-14


@given(context=st.integers(0, 10**6))
def test_time_always_moves_on(context: int) -> None:
    assert decode_ps(times([0], [[0.0]], [0.0]), 1, context) >= 1


def test_a_longer_context_is_never_quicker() -> None:
    with pytest.raises(AssertionError, match="never makes a step quicker"):
        times([0], [[0.02]], [-1e-9])


def test_a_line_goes_on_beyond_its_knots() -> None:
    found = times([0], [[0.02]], [0.0])
    assert curve_s(found, 5000) == pytest.approx(0.01 + 5.0)


def test_batches_are_a_column() -> None:
    assert batches(3).tolist() == [[1.0], [2.0], [3.0]]
