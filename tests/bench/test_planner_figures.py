"""`python -m bench planner_figures`: each part alone (what it finds: tests/planner/published)."""

import pytest

from bench import planner_figures
from bench.__main__ import NAMES

BEGINS = {"table2": "table 2, ", "quickstart": "quick start: ", "fig8": "fig. 8, "}
SIDES = ("disaggregated 2x1 + 1x1", "colocated 2x1")
FEW = {
    "NUM_QUICK_SEEDS": 2,
    "NUM_QUICK_SEARCHES": 1,
    "NUM_RUNS": 1,
    "FIG_8_RUNS": (300,),
    "FIG_8_SIDES": {side: planner_figures.FIG_8_SIDES[side] for side in SIDES},
}


def test_it_is_one_of_the_benchmarks() -> None:
    assert "planner_figures" in NAMES


@pytest.mark.parametrize("part", planner_figures.PARTS)
def test_a_part(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        monkeypatch.setattr(planner_figures, name, value)
    said: list[str] = []
    report = planner_figures.measure(quick=True, on_progress=said.append, only=part)
    assert said == [f"planner_figures: {part}"]
    assert {each.name.startswith(BEGINS[part]) for each in report.figures} == {True}
    assert report.bars
