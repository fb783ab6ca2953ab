"""The base installation plans: nothing that serving needs is ever imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
from cli.main import app
app({arguments!r})
"""
SMALL = [
    *("--gpu", "a100-80g-sxm", "--prompt-tokens", "512", "--output-tokens", "16"),
    *("--slo", "ttft=1,tpot=0.1", "--policy", "shortest_queue"),
]
CASES = [
    ("plan", ["plan", "llama-3.1-8b", *SMALL, "--gpus", "2", "--quick", "--explain"]),
    (
        "simulate",
        ["simulate", "llama-3.1-8b", *SMALL, "--mixed", "1x1:1", "--rate", "5", "--runs", "1"],
    ),
]


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def refused() -> frozenset[str]:
    """By import name, whatever only the serve extra brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {_name(each) for each in project["optional-dependencies"]["serve"]}
    base = {_name(each) for each in project["dependencies"]}
    assert not names & base
    renamed = {
        "grpcio": "grpc",
        "grpcio_status": "grpc_status",
        "huggingface_hub": "huggingface_hub",
    }
    return frozenset(renamed.get(name, name) for name in names) | {"google"}


def _name(requirement: str) -> str:
    ends = [requirement.find(mark) for mark in "<>=[; " if mark in requirement]
    return requirement[: min(ends, default=None)].replace("-", "_")


def test_what_serving_needs_is_refused(refused: frozenset[str]) -> None:
    assert {"torch", "ray", "grpc", "redis", "transformers", "aiohttp"} <= refused
    assert not {"numba", "numpy", "matplotlib", "rich", "typer"} & refused


@pytest.mark.parametrize("arguments", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_runs_without_them(arguments: list[str], refused: frozenset[str], tmp_path: Path) -> None:
    extra = ["--out", str(tmp_path / "plan.toml")] if arguments[0] == "plan" else []
    code = REFUSING.format(refused=set(refused), arguments=[*arguments, *extra])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "TTFT P50 / P90 / P99" in ended.stdout
    assert bool(extra) == (tmp_path / "plan.toml").exists()
