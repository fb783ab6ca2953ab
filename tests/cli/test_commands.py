"""The command line: found clusters, clear errors, help for a newcomer."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import running
from cli.main import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this user's clusters or models is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(running, "user_cache_dir", lambda: tmp_path / "baton")
    return tmp_path


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("fetch", "serve", "generate", "status"))


REFUSED = [
    # id                    arguments                              status  names
    ("no cluster", ["status"], 1, "baton serve"),
    ("nobody to ask", ["generate", "hi"], 1, "baton serve"),
    ("no such plan", ["serve", "--plan", "nowhere.toml"], 2, "nowhere.toml"),
    ("no such config", ["serve", "--config", "nowhere.toml"], 2, "nowhere.toml"),
    ("no model yet", ["serve"], 1, "baton fetch"),
    ("bad address", ["status", "--address", "not an address"], 1, "host:port"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(arguments: list[str], status: int, named: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == status
    assert named in result.output
    assert "Traceback" not in result.output


def test_a_running_cluster_is_found_until_it_ends() -> None:
    with running.announced("one", ("127.0.0.1:1",)):
        assert running.find_routers(None) == ("127.0.0.1:1",)
        assert running.find_routers("127.0.0.1:2") == ("127.0.0.1:2",)
    with pytest.raises(running.NoCluster):
        running.find_routers(None)
