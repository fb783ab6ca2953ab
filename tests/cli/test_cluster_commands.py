"""What all commands about a running cluster have in common."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from cli.drain import drain
from cli.logs import logs
from cli.replan import replan
from cli.status import status
from cli.top import top
from tests.cli.conftest import FakeCluster

app = typer.Typer()
for command in (status, top, drain, logs, replan):
    app.command()(command)
runner = CliRunner()

COMMANDS = [["status"], ["top", "--once"], ["drain", "prefill-a"], ["logs", "router-0"], ["replan"]]
NAMES = [arguments[0] for arguments in COMMANDS]
NEED_GRPC = ("cli.asking", "cli.controller", "cli.watching", "cli.top_sight")


@pytest.mark.parametrize("arguments", COMMANDS, ids=NAMES)
def test_no_cluster(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "NO_CLUSTER: no running cluster: start one with `baton up" in result.output


@pytest.mark.parametrize("arguments", COMMANDS, ids=NAMES)
def test_another_clusters_name(cluster: FakeCluster, arguments: list[str]) -> None:
    result = runner.invoke(app, [*arguments, "--name", "two"])
    assert result.exit_code == 1
    assert "no cluster 'two' is known here; there is one" in result.output


@pytest.mark.parametrize("arguments", COMMANDS, ids=NAMES)
def test_no_secret_is_shown(cluster: FakeCluster, arguments: list[str]) -> None:
    cluster.store.set_reachable(False)
    assert "s3cret" not in runner.invoke(app, arguments).output


@pytest.mark.parametrize("arguments", COMMANDS, ids=NAMES)
def test_the_base_installation_says_what_to_install(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "rpc" or n in NEED_GRPC]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 4
    assert "pip install -e '.[serve]'" in result.output


@pytest.mark.parametrize("name", NAMES)
def test_help_is_for_newcomers(name: str) -> None:
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "--name" in result.output
    assert "The cluster's name" in result.output


def test_naming_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, cli.status, cli.top, cli.drain, cli.logs, cli.replan\n"
        "print(sorted({'grpc', 'redis', 'ray', 'torch', 'google.protobuf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
