"""`baton up`, again, too much, `baton down`: as typed, and nothing of it is left."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local_ray.door import read_holder

pytestmark = pytest.mark.ray

BATON = Path(sys.executable).parent / "baton"
COMMAND_TIMEOUT_S = 200.0
PLAN = """\
[prefill]
replicas = 1

[decode]
replicas = 1
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """State of its own; the user's clusters are not to be touched."""
    return dict(os.environ) | {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(autouse=True)
def _nothing_left(environ: dict[str, str]) -> Iterator[None]:
    before = left_of(environ)
    yield
    baton(environ, "down", "--drain-s", "0", may_fail=True)
    assert left_of(environ) == before


def test_up_again_too_much_down(
    environ: dict[str, str], plan: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    up = ("up", str(plan), "--model", str(tiny_dir))
    first = json.loads(baton(environ, *up, "--json"))
    assert first["edition"] == 1
    print(f"parts of a first `baton up`: {first['parts_s']}")
    again = json.loads(baton(environ, *up, "--json"))
    assert again["edition"] == 1
    assert again["routers"] == first["routers"]
    assert "starting Ray" in first["parts_s"]
    assert "starting Ray" not in again["parts_s"]
    print(f"parts of a second one: {again['parts_s']}")

    holder = read_holder(Path(environ["XDG_STATE_HOME"]) / "baton" / "clusters" / "baton" / "ray")
    assert holder is not None
    assert holder.scratch.is_dir()

    members = members_of(environ)
    too_much = tmp_path / "too-much.toml"
    too_much.write_text(PLAN + "num_gpus = 8\n")
    said = baton(environ, "up", str(too_much), "--model", str(tiny_dir), may_fail=True)
    assert "1 of 1 decode instances do not fit, each needs 1 CPU and 8 GPU on one host" in said
    assert "no host has 8 GPU left, the most is 0" in said
    assert members_of(environ) == members

    said = baton(environ, "generate", "hello", "--raw", "--max-tokens", "4")
    assert "4 tokens" in said
    said = baton(environ, "down")
    assert "cluster baton is down" in said
    assert not holder.scratch.exists()


def test_a_model_that_is_none(environ: dict[str, str], plan: Path, tmp_path: Path) -> None:
    said = baton(environ, "up", str(plan), "--model", str(tmp_path), may_fail=True)
    assert "no config.json, so not a model directory" in said


def baton(environ: dict[str, str], *arguments: str, may_fail: bool = False) -> str:
    """What it wrote to standard output, and after it what to standard error."""
    done = subprocess.run(
        [str(BATON), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert may_fail or done.returncode == 0, done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def members_of(environ: dict[str, str]) -> set[str]:
    """By name, as the controller has them."""
    document = json.loads(baton(environ, "status", "--json"))
    return {member["name"] for member in document["controller"]["members"]}


def left_of(environ: dict[str, str]) -> list[str]:
    """What a cluster could leave: files, and processes that name our folder."""
    state = Path(environ["XDG_STATE_HOME"])
    files = [str(path) for path in state.rglob("*") if path.is_file()]
    alive = [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE]
    ours = [p.name() for p in alive if is_ours(p, state)]
    return sorted([*files, *ours])


def is_ours(process: psutil.Process, state: Path) -> bool:
    """Its environment or its command line names the folder."""
    try:
        return process.environ().get("XDG_STATE_HOME") == str(state) or any(
            str(state) in word for word in process.cmdline()
        )
    except psutil.Error:
        return False
