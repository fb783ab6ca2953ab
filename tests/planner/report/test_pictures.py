"""Pictures: what is drawn, not how it looks."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.report.pareto import Point, front
from planner.report.pictures import front_figure, rate_figure
from tests.planner.report.answers import mixed, pools, ranked

amounts = st.integers(0, 6).map(float)
points = st.lists(st.tuples(amounts, amounts).map(lambda pair: Point(*pair)), max_size=12)


@given(points)
def test_no_point_beats_one_of_the_front(found: list[Point]) -> None:
    for best in front(found):
        assert not any(p.cost <= best.cost and p.goodput > best.goodput for p in found)
        assert not any(p.cost < best.cost and p.goodput >= best.goodput for p in found)


@given(points)
def test_every_point_is_beaten_or_on_the_front(found: list[Point]) -> None:
    best = front(found)
    assert all(any(b.cost <= p.cost and b.goodput >= p.goodput for b in best) for p in found)
    assert all(a.cost < b.cost and a.goodput < b.goodput for a, b in pairwise(best))


def test_every_rate_that_was_tried_is_drawn() -> None:
    figure = rate_figure([("plan", ranked(pools(1, 2), 6.0))], 0.9)
    (line, *_) = figure.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [6.0, 6.6000000000000005]
    assert np.asarray(line.get_ydata()).tolist() == [0.95, 0.5]


def test_both_costs_are_drawn_and_the_plan_is_marked() -> None:
    plan = ranked(pools(1, 2), 6.0)
    figure = front_figure([plan, ranked(mixed(4), 5.0)], plan)
    assert [ax.get_xlabel() for ax in figure.axes] == ["USD per hour", "provisioned watts"]
    labels = figure.axes[1].get_legend_handles_labels()[1]
    assert labels == ["two pools", "colocated", "front", "chosen"]
