"""How sure shares and means are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.search.intervals import mean_interval, share, share_interval, t_95


def share_inside(dof: int, bound: float) -> float:
    """Of Student's t within ± bound, by Simpson's rule."""
    x = np.linspace(-bound, bound, 20001)
    density = (1 + x**2 / dof) ** (-(dof + 1) / 2)
    scale = math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)
    weights = np.where(np.arange(x.size) % 2, 4, 2).astype(np.float64)
    weights[0] = weights[-1] = 1
    return float(scale * (weights * density).sum() * (x[1] - x[0]) / 3)


@pytest.mark.parametrize("dof", [1, 2, 3, 5, 10, 20, 21, 30, 47, 100, 1000])
def test_students_t_holds_95_percent(dof: int) -> None:
    assert share_inside(dof, t_95(dof)) == pytest.approx(0.95, abs=2e-5)


MEANS = [
    # id             values                 mean  half-width
    ("two", [1.0, 3.0], 2.0, 12.7062 * math.sqrt(2) / math.sqrt(2)),
    ("all alike", [0.5] * 4, 0.5, 0.0),
    ("one says nothing", [0.7], 0.7, math.inf),
]


@pytest.mark.parametrize(("values", "mean", "half"), [c[1:] for c in MEANS])
def test_means(values: list[float], mean: float, half: float) -> None:
    got = mean_interval(values)
    assert got.value == pytest.approx(mean)
    assert got.half_width == pytest.approx(half)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_a_share_lies_in_its_interval_and_wilsons_in_it(runs: list[tuple[int, int]]) -> None:
    hits = [min(pair) for pair in runs]
    sizes = [max(pair) for pair in runs]
    got = share_interval(hits, sizes)
    wilson = share(sum(hits), sum(sizes))
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.low <= wilson.low + 1e-12
    assert got.high >= wilson.high - 1e-12


def test_runs_that_differ_are_less_sure_than_their_requests() -> None:
    alike, different = share_interval([90, 90], [100, 100]), share_interval([99, 81], [100, 100])
    assert alike.value == different.value == 0.9
    assert different.half_width > 2 * alike.half_width


def test_intervals_hold_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        hits = random.binomial(200, 0.9, size=4)
        got = share_interval(list(map(int, hits)), [200] * 4)
        held += got.low <= 0.9 <= got.high
    assert held >= 940
