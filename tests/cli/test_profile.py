"""`baton profile`: what it prints, writes, compares and refuses."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import profile as command
from cli.main import app
from core.clock import Clock
from core.config import EngineConfig
from core.profile import Subject, load
from deploy import interrupt, profile_load
from deploy.profile_steps import Bench
from tests.core.profiles import profile, slowed
from tests.deploy.planted_engine import SUBJECT, PlantedEngine

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes SIGTERM for itself; here it would be taken from pytest."""
    monkeypatch.setattr(interrupt, "terminate_like_ctrl_c", lambda: None)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlantedEngine:
    """What is profiled instead of a model; the working folder is empty."""
    planted = PlantedEngine()

    def load_bench(model_dir: Path, config: EngineConfig, clock: Clock) -> tuple[Bench, Subject]:
        return planted.bench(config.num_blocks), SUBJECT

    monkeypatch.setattr(profile_load, "load_bench", load_bench)
    monkeypatch.setattr(profile_load, "neighbours_of", lambda config: planted.neighbours)
    monkeypatch.setattr(command, "MonotonicClock", lambda: planted.clock)
    monkeypatch.chdir(tmp_path)
    return planted


def test_a_table_for_people(engine: PlantedEngine) -> None:
    result = runner.invoke(app, ["profile", "--model", "any"])
    assert result.exit_code == 0, result.output
    for line in ("layout 1x1", "prefill, per step", "40.00", "held-out error", "gather, "):
        assert line in result.output
    assert re.search(r"L_m: \d+ prompt tokens per step", result.output)
    assert "loaded / alone: prefill 2.00, decode 2.00" in result.output
    assert load(Path("profile.json")).subject == SUBJECT


def test_json_for_programs_is_the_file(engine: PlantedEngine) -> None:
    result = runner.invoke(
        app, ["profile", "--model", "any", "--quick", "--json", "--out", "x.json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(Path("x.json").read_text())


def test_the_settings_choose_the_room(engine: PlantedEngine) -> None:
    Path("few.toml").write_text("[engine]\nnum_blocks = 64\n")
    result = runner.invoke(app, ["profile", "--model", "any", "--quick", "--config", "few.toml"])
    assert result.exit_code == 0, result.output
    assert engine.touched == set(range(64))


def test_an_interrupt_says_how_to_go_on(
    engine: PlantedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted() -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(profile_load, "neighbours_of", lambda config: interrupted)
    result = runner.invoke(app, ["profile", "--model", "any"])
    assert result.exit_code == 130
    assert "run it again to go on" in result.output
    assert Path("profile.json.partial").exists()


def test_a_budget_too_short_says_so(engine: PlantedEngine) -> None:
    result = runner.invoke(app, ["profile", "--model", "any", "--budget-s", "3"])
    assert result.exit_code == 1
    assert "give a longer --budget-s" in result.output


AGREEMENTS = [
    # id          slowed by, status, says
    ("agree", 1.02, 0, "22 of 22 steps agree"),
    ("differ", 1.5, 1, "0 of 22 steps agree"),
]


@pytest.mark.parametrize(
    ("by", "status", "says"), [c[1:] for c in AGREEMENTS], ids=[c[0] for c in AGREEMENTS]
)
def test_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, status: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("profile.json").write_text(profile().to_json())
    Path("other.json").write_text(slowed(profile(), 11, by).to_json())
    result = runner.invoke(app, ["profile", "--compare", "other.json"])
    assert result.exit_code == status
    assert says in " ".join(result.output.split())
    assert "L_m: 128 and 128: agree" in result.output


REFUSED = [
    # id                    arguments                                   status  names
    ("nothing measured", ["--out", "no.json", "--compare", "no.json"], 2, "no.json"),
    ("no such config", ["--config", "no.toml", "--model", "any"], 2, "no.toml"),
    ("no such model", ["--model", "nowhere"], 1, "no config.json"),
    ("no time", ["--budget-s", "0"], 2, "budget-s"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["profile", *arguments])
    assert result.exit_code == status
    assert named in result.output
    assert "Traceback" not in result.output


def test_what_is_no_profile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("profile.json").write_text("{}")
    result = runner.invoke(app, ["profile", "--compare", "profile.json"])
    assert result.exit_code == 2
    assert "schema must be 1, got None" in result.output


def test_the_base_installation_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = runner.invoke(app, ["profile", "--model", "any"])
    assert result.exit_code == 4
    assert "pip install -e '.[serve]'" in result.output
