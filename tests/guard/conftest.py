"""The project's own files, for the tests that hold its rules."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("core", "rpc", "registry", "text", "policy", "engine", "kv_transfer", "worker_host"),
    *("prefill_worker", "decode_worker", "router", "planner", "deploy", "bench", "cli"),
)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Relative to the root: what git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the project's files cannot be told from others")
    found = (Path(name) for name in listed.stdout.split("\0") if name)
    return sorted(path for path in found if (ROOT / path).is_file())


@pytest.fixture(scope="session")
def python_files(project_files: list[Path]) -> list[Path]:
    """All that people write: generated code left out."""
    return [
        path for path in project_files if path.suffix == ".py" and not path.is_relative_to("rpc/pb")
    ]


@pytest.fixture(scope="session")
def package_trees(python_files: list[Path]) -> dict[Path, ast.Module]:
    """The syntax trees of what is installed: no tests, no tools."""
    return {
        path: ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))
        for path in python_files
        if path.parts[0] in PACKAGES
    }
