"""A busy neighbour ends with whoever asked for it."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.busy import busy_neighbours

ROOT = Path(__file__).resolve().parents[2]


def neighbours() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


class Failed(Exception):
    pass


def test_they_are_there_inside_the_block_only() -> None:
    before = len(neighbours())
    with busy_neighbours(2, "cpu"):
        assert len(neighbours()) == before + 2
    assert len(neighbours()) == before


def test_they_end_when_the_block_fails() -> None:
    before = len(neighbours())
    with pytest.raises(Failed), busy_neighbours(1, "cpu"):
        raise Failed
    assert len(neighbours()) == before


def test_it_ends_with_its_standard_input() -> None:
    # As the system closes it when the parent is killed.
    done = subprocess.run(
        [sys.executable, "-m", "deploy.busy"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"busy\n"
