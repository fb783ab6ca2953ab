"""The command: which parts there are, and what is asked of a benchmark."""

import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

from bench import engine
from bench.__main__ import app
from bench.report import Bar, Report, figure

ASKED = [
    # id                    arguments                 status asked
    ("everything", ["engine"], 0, {"quick": False}),
    ("one part", ["engine", "--only", "b"], 0, {"quick": False, "only": "b"}),
    ("one part, quick", ["engine", "--only", "a", "--quick"], 0, {"quick": True, "only": "a"}),
    ("no such part", ["engine", "--only", "c"], 2, None),
    ("no parts at all", ["smoke", "--only", "a"], 2, None),
]


class Benchmark(ModuleType):
    """A module with two parts that notes what it is asked."""

    PARTS = ("a", "b")
    asked: dict[str, object] | None = None

    def measure(self, **options: object) -> Report:
        """Nothing is measured."""
        self.asked = {key: value for key, value in options.items() if key != "on_progress"}
        bar = Bar(name="b", value=1.0, bound=2.0, unit="s")
        return Report(name="x", figures=(figure("f", [1.0], "s"),), bars=(bar,))


@pytest.mark.parametrize(
    ("arguments", "status", "asked"), [c[1:] for c in ASKED], ids=[c[0] for c in ASKED]
)
def test_only(
    arguments: list[str],
    status: int,
    asked: dict[str, object] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benchmark = Benchmark("bench.engine")
    monkeypatch.setitem(sys.modules, "bench.engine", benchmark)
    monkeypatch.setitem(sys.modules, "bench.smoke", ModuleType("bench.smoke"))
    assert CliRunner().invoke(app, arguments).exit_code == status
    assert benchmark.asked == asked


def test_the_parts_of_engine() -> None:
    assert engine.PARTS == ("stalls", "fairness", "speed")
