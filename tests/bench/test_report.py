"""Figures, bars and what the JSON holds."""

import json
from pathlib import Path

import pytest

from bench.report import Bar, Report, figure

BARS = [
    ("below", 1.0, 2.0, True, True),
    ("equal", 2.0, 2.0, True, True),
    ("above", 3.0, 2.0, True, False),
    ("enough", 3.0, 2.0, False, True),
    ("too few", 1.0, 2.0, False, False),
]


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "holds"), [c[1:] for c in BARS], ids=[c[0] for c in BARS]
)
def test_bars(value: float, bound: float, at_most: bool, holds: bool) -> None:
    bar = Bar(name="x", value=value, bound=bound, unit="s", at_most=at_most)
    assert bar.holds is holds


def test_figures() -> None:
    f = figure("x", range(1, 101), "s")
    assert (f.median, f.quantile(0.99), f.quantile(1.0)) == (50.5, 100, 100)
    with pytest.raises(ValueError, match="nothing was measured"):
        figure("x", [], "s")


def test_json(tmp_path: Path) -> None:
    bar = Bar(name="b", value=1.0, bound=2.0, unit="s")
    report = Report(name="r", figures=(figure("f", [1.0], "s"),), bars=(bar,))
    report.write(tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert document["name"] == "r"
    assert document["results"] == {"f": {"unit": "s", "values": [1.0]}}
    assert document["bars"][0]["holds"] is True
    assert document["machine"]["num_cores"] >= 1
