"""Corrections: they follow what is seen, forget it slowly, and never trust damage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.correction import MAX_FACTOR, Mean, Scale, drifted, geometric_mean


def after(*ratios: float) -> Scale:
    scale = Scale()
    for ratio in ratios:
        scale = scale.after(1.0, ratio)
    return scale


SEEN = [
    ("the first stands for itself", (3.0,), 3.0),
    ("then the geometric mean", (2.0, 8.0), 4.0),
    ("once there are many, the newest weighs a tenth", (1.0,) * 20 + (1024.0,), 2.0),
    ("no time at all is damage", (3.0, 0.0), 3.0),
    ("so is what is not finite", (3.0, math.inf), 3.0),
    ("and far too much is cut", (1e9,), MAX_FACTOR),
]


@pytest.mark.parametrize(("ratios", "want"), [c[1:] for c in SEEN], ids=[c[0] for c in SEEN])
def test_scale(ratios: tuple[float, ...], want: float) -> None:
    assert after(*ratios).value == pytest.approx(want)


def test_who_was_never_seen_is_as_its_peers() -> None:
    got = drifted({0: after(2.0), 1: after(8.0), 2: Scale()}, share=0.0)
    assert [got[i].value for i in range(3)] == pytest.approx([2.0, 8.0, 4.0])


def test_who_was_slow_for_a_moment_comes_back() -> None:
    scales = {0: after(1.0), 1: after(1.0), 2: after(64.0)}
    for _ in range(50):
        scales = dict(drifted(scales))
    assert scales[2].value / scales[0].value < 1.05


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_drift_keeps_the_mean_and_the_order(values: list[float]) -> None:
    before = {i: after(value) for i, value in enumerate(values)}
    now = drifted(before)
    means = [geometric_mean([s.value for s in scales.values()]) for scales in (before, now)]
    assert means[1] == pytest.approx(means[0])
    by_value = sorted(before, key=lambda i: before[i].value)
    assert [now[i].value for i in by_value] == pytest.approx(sorted(s.value for s in now.values()))


def test_mean_follows() -> None:
    mean = Mean()
    for value in (4.0, 8.0):
        mean = mean.after(value)
    assert mean == Mean(6.0, 2)
