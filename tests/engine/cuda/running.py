"""Runs check files in a process of their own: what executes a Triton kernel, its compiler or its
interpreter, is decided when Triton is first imported."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT_S = 240  # several times what a busy machine took


def checks_in(folder: Path) -> list[str]:
    """Names of the check files."""
    return sorted(path.stem.removeprefix("check_") for path in folder.glob("check_*.py"))


def run_checks(folder: Path, names: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run these files' tests, with the environment added to ours; all must pass."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(str(folder / f"check_{name}.py") for name in names),
        ],
        cwd=folder.parents[2],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
