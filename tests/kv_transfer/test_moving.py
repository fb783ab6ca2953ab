"""What a segment costs, as measured: the planted line is found; nothing measured breaks it."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.moving import MIN_SEGMENT_S, PRIOR_BYTES_PER_S, PRIOR_SEGMENT_S, MovingCosts

MIB = 1024 * 1024


def test_what_is_supposed_first() -> None:
    costs = MovingCosts()
    assert costs.segment_s == pytest.approx(PRIOR_SEGMENT_S)
    assert costs.bytes_per_s == pytest.approx(PRIOR_BYTES_PER_S)


@pytest.mark.parametrize("segment_s", [0.0002, 0.0005, 0.004])
@pytest.mark.parametrize("bytes_per_s", [50e6, 1e9, 4e9])
def test_a_planted_line_is_found(segment_s: float, bytes_per_s: float) -> None:
    rng, costs = random.Random(1), MovingCosts()
    for _ in range(200):
        num_bytes = rng.randrange(4096, 2 * MIB)
        costs.moved(num_bytes, segment_s + num_bytes / bytes_per_s)
    assert costs.segment_s == pytest.approx(segment_s, rel=0.1, abs=1e-4)
    assert costs.bytes_per_s == pytest.approx(bytes_per_s, rel=0.1)


def test_segments_of_one_size_are_foretold() -> None:
    """Though they cannot tell the fixed part from the other."""
    costs = MovingCosts()
    for _ in range(100):
        costs.moved(MIB, 0.02)
    assert costs.segment_s + MIB / costs.bytes_per_s == pytest.approx(0.02, rel=0.02)


def test_no_segment_is_free() -> None:
    """Two sizes near each other, the larger slower than its share: the line starts below 0."""
    costs = MovingCosts()
    for _ in range(50):
        costs.moved(MIB, 0.001)
        costs.moved(MIB + MIB // 4, 0.002)
    assert costs.segment_s == MIN_SEGMENT_S
    mean_s = costs.segment_s + 1.125 * MIB / costs.bytes_per_s
    assert mean_s == pytest.approx(0.0015, rel=0.1)


def test_a_link_that_changed_is_believed_soon() -> None:
    rng, costs = random.Random(2), MovingCosts()
    for bytes_per_s in (1e9, 20e6, 1e9):
        for _ in range(100):
            num_bytes = rng.randrange(4096, 2 * MIB)
            costs.moved(num_bytes, 0.001 + num_bytes / bytes_per_s)
        assert costs.bytes_per_s == pytest.approx(bytes_per_s, rel=0.2)


def test_one_pause_is_no_slow_link() -> None:
    costs = MovingCosts()
    for _ in range(50):
        costs.moved(MIB, 0.004)
    costs.moved(MIB, 60.0)
    assert costs.segment_s + MIB / costs.bytes_per_s < 0.008


@given(st.lists(st.tuples(st.integers(0, 4 * MIB), st.floats(0.0, 100.0)), max_size=60))
def test_costs_are_finite_and_never_negative(measured: list[tuple[int, float]]) -> None:
    costs = MovingCosts()
    for num_bytes, seconds in measured:
        costs.moved(num_bytes, seconds)
        assert MIN_SEGMENT_S <= costs.segment_s < math.inf
        assert 0.0 < costs.bytes_per_s < math.inf
