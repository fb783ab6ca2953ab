"""Setting up on machines that are not like this one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import environment

SUITABLE, TOO_OLD, NO_VENV, BROKEN = 0, 3, 4, 127  # what the probe in tools/setup exits with

Which = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def which(root: Path, tmp_path: Path) -> Which:
    """Run `tools/setup --which` where only the given Pythons exist: name → how the probe ends."""

    def run(
        pyenv: dict[str, int] | None = None, **pythons: int
    ) -> subprocess.CompletedProcess[str]:
        places = {tmp_path / "bin" / name.replace("_", "."): code for name, code in pythons.items()}
        for version, code in (pyenv or {}).items():
            places[tmp_path / "home/.pyenv/versions" / version / "bin/python3"] = code
        for path, code in places.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Asked for its version it names one; otherwise it is the probe that asks.
            path.write_text(f"#!/bin/sh\ncase $2 in *print*) echo 3.8;; *) exit {code};; esac\n")
            path.chmod(0o755)
        return subprocess.run(
            ["/bin/sh", str(root / "tools/setup"), "--which"],
            env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


CHOICES = [
    # id, what is on the PATH (_ for a dot), what is taken
    ("the usual one", {"python3": SUITABLE, "python3_13": SUITABLE}, "python3"),
    ("too old found first", {"python3": TOO_OLD, "python3_11": SUITABLE}, "python3.11"),
    (
        "newest of the others",
        {"python3": TOO_OLD, "python3_11": SUITABLE, "python3_12": SUITABLE},
        "python3.12",
    ),
    ("no venv module", {"python3": NO_VENV, "python3_12": SUITABLE}, "python3.12"),
    ("a shim of nothing", {"python3_12": BROKEN, "python3_11": SUITABLE}, "python3.11"),
    ("only python", {"python": SUITABLE}, "python"),
]


@pytest.mark.parametrize(("pythons", "want"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES])
def test_which_python(which: Which, pythons: dict[str, int], want: str) -> None:
    ran = which(**pythons)
    assert (ran.returncode, Path(ran.stdout.strip()).name) == (0, want)


def test_one_that_pyenv_keeps_switched_off_is_found(which: Which) -> None:
    ran = which(pyenv={"3.12.4": SUITABLE}, python3=TOO_OLD)
    assert ran.stdout.strip().endswith("versions/3.12.4/bin/python3")


def test_none_suitable_says_what_was_found_and_what_to_install(which: Which) -> None:
    ran = which(python3=TOO_OLD, python3_11=NO_VENV, python3_12=BROKEN)
    assert ran.returncode == 1
    for words in (
        *("bin/python3 is 3.8", "bin/python3.11 has no venv module", "bin/python3.12 does not run"),
        *("Python 3.11, 3.12, 3.13 or 3.14", "sudo apt install python3 python3-venv"),
    ):
        assert words in ran.stderr


def test_none_at_all_says_what_to_install(which: Which) -> None:
    ran = which()
    assert ran.returncode == 1
    assert "Install one" in ran.stderr
    assert "Found instead" not in ran.stderr


# --- room ---------------------------------------------------------------------------------------


def test_too_small_a_machine_is_told_both_reasons() -> None:
    disk, memory = environment.Room(disk_bytes=1e9, memory_bytes=2e9).problems()
    assert disk == "disk: 1.0 GB free here, 2.5 GB needed"
    assert memory.startswith("memory: 2.0 GB available, 4.0 GB needed")


def test_unknown_memory_is_not_too_little() -> None:
    assert list(environment.Room(disk_bytes=1e11, memory_bytes=None).problems()) == []


# --- doing nothing, and doing it right ----------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\n[project]\nname = "x"\n[tool.ruff]\nline-length = 100\n'
    )
    return tmp_path


def test_ready_only_while_what_decides_is_the_same(project: Path) -> None:
    stamp, settings = project / "stamp", project / "pyproject.toml"
    assert not environment.is_ready(project, stamp)
    stamp.write_text(environment.digest(project))
    assert environment.is_ready(project, stamp)
    settings.write_text(settings.read_text().replace("100", "90"))  # a linter's setting
    assert environment.is_ready(project, stamp)
    settings.write_text(settings.read_text().replace('"x"', '"y"'))
    assert not environment.is_ready(project, stamp)


def test_nothing_of_an_outer_environment_gets_in() -> None:
    outer = {
        "PATH": "/bin",
        "PYTHONPATH": "/x",
        "VIRTUAL_ENV": "/x",
        "PIP_TARGET": "/x",
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "https_proxy": "http://proxy",
    }
    inner = environment.environment(outer)
    assert inner["PATH"] == "/bin"
    assert inner["https_proxy"] == "http://proxy"
    assert (inner["PIP_USER"], inner["PIP_REQUIRE_VIRTUALENV"]) == ("0", "0")
    assert not inner.keys() & {"PYTHONPATH", "VIRTUAL_ENV", "PIP_TARGET"}


LINES = [
    ("  Downloading ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl (79.3 MB)", "ray (79.3 MB)"),
    ("Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (1.1 GB)", "torch (1.1 GB)"),
    ("  Downloading idna-3.20-py3-none-any.whl (70 kB)", None),
    ("Processing torch-2.13.0-cp311.whl (from -c constraints.txt (line 68))", None),
    ("Requirement already satisfied: numpy in place (2.4.6)", None),
    ("Installing collected packages: mpmath, zipp, xxhash", "installing 3 packages"),
]


@pytest.mark.parametrize(("line", "want"), LINES)
def test_news_of_pip(line: str, want: str | None) -> None:
    got = environment.news(line)
    assert got == want if want is None else want in (got or "")


def test_a_failed_step_shows_the_end_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["/bin/sh", "-c", "echo working; echo no such package >&2; exit 1"]
    with (
        (tmp_path / "log").open("w") as log,
        pytest.raises(environment.SetupError, match="no such package"),
    ):
        environment.step("[2/3] installing", command, log)
    assert capsys.readouterr().out == "[2/3] installing\n"


def test_an_environment_that_is_there_costs_no_time(root: Path) -> None:
    if not environment.is_ready(root, environment.STAMP):
        pytest.skip("this environment was made by hand")
    ran = subprocess.run(
        ["/bin/sh", str(root / "tools/setup")],
        env=os.environ | {"PYTHONPATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
        timeout=5,
    )
    assert (ran.stdout, ran.stderr) == ("", "")
