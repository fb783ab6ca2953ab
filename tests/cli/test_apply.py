"""`baton apply` against a real router: put, look, go back."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.stub_engine import write_stub_model
from cli.main import app
from core.ids import RouterId
from deploy.actors import ServiceThread
from registry.memory import MemoryRegistry
from router.server import run_router
from router.spec import RouterSpec

runner = CliRunner()


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = RouterSpec(
        router_id=RouterId("router-0"),
        model_dir=write_stub_model(tmp_path_factory.mktemp("model")),
        registry_url="",
        cluster="test",
        drain_s=1.0,
    )
    registry = MemoryRegistry()
    thread = ServiceThread(
        lambda stop, ready: run_router(spec, stop=stop, ready=ready, registry=registry), "router"
    )
    yield thread.address()
    assert thread.stop(10.0)
    assert threading.active_count() < 20


def run(router: str, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, ["apply", *arguments, "--address", router])
    assert result.exit_code == status, result.output
    return result.output


def test_put_look_and_go_back(router: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('[policy]\nname = "jsq"\n', encoding="utf-8")
    second.write_text('[policy]\nname = "random"\n', encoding="utf-8")
    assert "no settings were put yet" in run(router, "--history")
    assert "no earlier settings" in run(router, "--rollback", "-1", status=1)
    assert "version 1 put" in run(router, str(first))
    shown = run(router, str(second), "--dry-run")
    assert '-name = "jsq"' in shown
    assert '+name = "random"' in shown
    assert "version 1 holds" in shown
    assert json.loads(run(router, str(second), "--json")) == {"version": 2, "dry_run": False}
    assert "version 3 put" in run(router, "--rollback", "-1")
    editions = json.loads(run(router, "--history", "--json"))["editions"]
    assert [(e["version"], e["restores"]) for e in editions] == [(1, 0), (2, 0), (3, 1)]
    assert editions[2]["text"] == editions[0]["text"]
    assert "random" not in run(router, "--history")  # a table of who and when, not of what
    assert "version 9" in run(router, "--rollback", "9", status=1)


REFUSED = [
    ("nothing to do", [], 2, "--rollback"),
    ("two things", ["--history", "--rollback", "1"], 2, "--history"),
    ("no such file", ["nowhere.toml"], 2, "nowhere.toml"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(router: str, arguments: list[str], status: int, named: str) -> None:
    assert named in run(router, *arguments, status=status)


def test_every_problem_is_named_with_the_file(router: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('log_level = "LOUD"\n[policy]\nname = "best"', encoding="utf-8")
    output = run(router, str(bad), status=2)
    assert "log_level" in output
    assert "policy.name" in output
