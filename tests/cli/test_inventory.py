"""`baton inventory`: tables for people, JSON for the planner."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.inventory import inventory
from cli.main import app as baton
from core.inventory import load_inventory
from deploy.inventory import nvml
from tests.deploy.inventory.described import DescribedNvml, h100_host, laptop

runner = CliRunner()
app = typer.Typer()
app.command()(inventory)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> DescribedNvml:
    """With eight H100."""
    made = h100_host()
    monkeypatch.setattr(nvml, "load_nvml", lambda: made)
    return made


@pytest.mark.usefixtures("host")
def test_tables_for_people() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    for words in ("NVIDIA H100 80GB HBM3", "h100-80g-sxm", "70 of 700", "NV18 450", "network:"):
        assert words in result.output


@pytest.mark.usefixtures("host")
def test_json_for_machines() -> None:
    result = runner.invoke(app, ["--json"])
    assert len(json.loads(result.stdout)["gpus"]) == 8


@pytest.mark.usefixtures("host")
def test_a_file_for_the_planner(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    result = runner.invoke(app, ["--out", str(path)])
    assert result.exit_code == 0
    assert len(load_inventory(path).gpus) == 8


@pytest.mark.usefixtures("host")
def test_the_planner_takes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    runner.invoke(app, ["--out", str(path)])
    question = ["simulate", "llama-3.1-8b", "--inventory", str(path), "--policy", "shortest_queue"]
    work = ["--prompt-tokens", "512", "--output-tokens", "16", "--slo", "ttft=1", "--rate", "5"]
    pools = ["--prefill", "2x1:2@h100-80g-sxm", "--decode", "4x1:1", "--num-requests", "100"]
    result = runner.invoke(baton, [*question, *work, *pools, "--runs", "1"])
    assert result.exit_code == 0, result.output
    assert "8 GPUs" in result.output
    more = runner.invoke(baton, [*question, *work, *pools, "--mixed", "1x1:1"])
    assert more.exit_code == 2
    assert "does not fit into the hosts" in more.output


@pytest.mark.usefixtures("host")
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    result = runner.invoke(app, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert str(tmp_path) in result.output


def test_no_gpus_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "load_nvml", laptop)
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    assert "no GPUs: no NVIDIA driver: NVML Shared Library Not Found" in result.output


def test_a_lost_gpu_is_one_line(host: DescribedNvml) -> None:
    host.lost = 2
    result = runner.invoke(app, [])
    assert result.exit_code == 1
    assert "NVML_FAILED: " in result.output
    assert "GPU is lost" in result.output
