"""Makes `.venv`: the second half of `tools/setup`, standard library only.

python -m tools.environment            set up; nothing to do ends at once
python -m tools.environment --ready    exit 0 when there is nothing to do
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from deploy.memory import available_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "baton-setup.json"
LOG = VENV / "baton-setup.log"

GB = 1e9
UNITS = {"kB": 1e3, "MB": 1e6, "GB": GB}
# Measured with the CPU build of torch 2.13 on x86-64: .venv is 1.7 GB, and pip's cache and temp
# files come on top while it installs.
NEEDED_DISK_BYTES = 2.5 * GB
CUDA_DISK_BYTES = 10 * GB
# Two instances of the default model in float32, each with torch loaded, Ray and the tests' oracle.
NEEDED_MEMORY_BYTES = 4 * GB
SHOWN_DOWNLOAD_BYTES = 5e6  # smaller ones pass too fast to be worth a line
NEWS_EVERY_S = 15.0  # a step that is silent longer looks hung

ANNOUNCEMENT = """\
Setting up Baton in .venv, once; later runs find it ready.
  downloads   about 0.4 GB: PyTorch 0.2 GB, Ray, transformers and the rest 0.2 GB
              (about 3 GB where the package index offers PyTorch's CUDA build)
  disk        about 2 GB here (8 GB with the CUDA build)
  later       the first run fetches the model SmolLM2-135M-Instruct: 93 MB, which becomes
              540 MB in your cache folder"""

CHECK = "import grpc, ray, tokenizers, torch, transformers"


class SetupError(Exception):
    """Setting up cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What this machine has left."""

    disk_bytes: float
    memory_bytes: float | None
    """None where the system does not say."""

    def problems(self) -> Iterator[str]:
        if self.disk_bytes < NEEDED_DISK_BYTES:
            yield f"disk: {gb(self.disk_bytes)} free here, {gb(NEEDED_DISK_BYTES)} needed"
        if self.memory_bytes is not None and self.memory_bytes < NEEDED_MEMORY_BYTES:
            yield (
                f"memory: {gb(self.memory_bytes)} available, {gb(NEEDED_MEMORY_BYTES)} needed to "
                "serve the default model; close something, or give the container more"
            )


def gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB"


# --- what this machine has ----------------------------------------------------------------------


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def room(folder: Path) -> Room:
    return Room(
        disk_bytes=float(shutil.disk_usage(folder).free), memory_bytes=available_memory_bytes()
    )


# --- is there anything to do --------------------------------------------------------------------


def digest(root: Path) -> str:
    """Of everything that decides what `.venv` holds; the linters' settings do not."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [
        project["build-system"],
        project["project"],
        project.get("tool", {}).get("hatch"),
        (root / "tools/constraints.txt").read_text(encoding="utf-8"),
        str(root),  # an environment does not survive being moved
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_ready(root: Path, stamp: Path) -> bool:
    return read(stamp) == digest(root)


# --- doing it -----------------------------------------------------------------------------------


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """`outer` without what would make pip or python act outside `.venv`."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"}
    kept = {name: value for name, value in outer.items() if name not in dropped}
    # Set, not dropped: a pip.conf may say otherwise.
    return kept | {
        "PIP_USER": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PYTHONUNBUFFERED": "1",
    }


def runs(python: Path) -> bool:
    command = [str(python), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def news(line: str) -> str | None:
    """What of one line of pip's output is worth showing."""
    size = re.match(r"\s*Downloading \S*?([^/\s]+?)-\d\S* \(([\d.]+) ([kMG]B)\)", line)
    if size and float(size[2]) * UNITS[size[3]] >= SHOWN_DOWNLOAD_BYTES:
        return f"downloading {size[1]} ({size[2]} {size[3]})"
    if line.startswith("Installing collected packages"):
        return f"installing {line.count(',') + 1} packages"
    return None


class Reporter:
    """Shows a step's news, and a sign of life where there is none."""

    def __init__(self) -> None:
        self._started_s = self._shown_s = time.monotonic()

    def show(self, text: str) -> None:
        self._shown_s = time.monotonic()
        print(f"      {text} [{self._shown_s - self._started_s:.0f} s]", flush=True)

    def live_until(self, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            if time.monotonic() - self._shown_s >= NEWS_EVERY_S:
                self.show("still working")


def follow(output: Iterable[str], log: IO[str]) -> None:
    """Copy pip's output to the log, and what is news to the terminal."""
    reporter, ended = Reporter(), threading.Event()
    watch = threading.Thread(target=reporter.live_until, args=[ended], daemon=True)
    watch.start()
    try:
        for line in output:
            log.write(line)
            if (text := news(line)) is not None:
                reporter.show(text)
    finally:
        ended.set()
        watch.join()


def step(title: str, command: Sequence[str], log: IO[str]) -> None:
    print(title, flush=True)
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        follow(process.stdout, log)
    if process.returncode != 0:
        log.flush()
        tail = "\n".join(f"    {line}" for line in read(Path(log.name)).splitlines()[-12:])
        raise SetupError(f"this step failed; the end of {log.name} says:\n{tail}\nRun it again.")


def install(python: str) -> None:
    STAMP.unlink(missing_ok=True)
    inner = VENV / "bin/python"
    if not runs(inner):
        print("[1/3] making .venv", flush=True)
        made = subprocess.run(
            [python, "-m", "venv", "--clear", str(VENV)],
            env=environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise SetupError(f"no environment could be made:\n{made.stdout}{made.stderr}")
    else:
        print("[1/3] using the .venv that is there", flush=True)
    with LOG.open("w", encoding="utf-8") as log:
        pip = [str(inner), "-m", "pip", "install", "--progress-bar", "off"]
        what = ["-c", "tools/constraints.txt", "-e", ".[serve,dev]"]
        step("[2/3] downloading and installing", [*pip, *what], log)
        step("[3/3] checking that it loads", [str(inner), "-c", CHECK], log)
    partial = STAMP.with_suffix(".partial")
    partial.write_text(digest(ROOT))
    partial.replace(STAMP)


def set_up() -> None:
    print(ANNOUNCEMENT)
    have = room(ROOT)
    memory = "unknown" if have.memory_bytes is None else gb(have.memory_bytes)
    print(f"  free now    disk {gb(have.disk_bytes)}, memory {memory}", flush=True)
    if problems := list(have.problems()):
        raise SetupError("\n".join(["this machine is too small:", *(f"  {p}" for p in problems)]))
    if have.disk_bytes < CUDA_DISK_BYTES:
        print(f"  note        the CUDA build would not fit ({gb(CUDA_DISK_BYTES)})", flush=True)
    started_s = time.monotonic()
    # Never an environment's own python: .venv may be the one that is active, and is cleared.
    install(getattr(sys, "_base_executable", sys.executable))
    print(f"Ready after {time.monotonic() - started_s:.0f} s.", flush=True)


def main(arguments: Sequence[str]) -> int:
    if is_ready(ROOT, STAMP):
        return 0
    if "--ready" in arguments:
        return 1
    # A second setup waits for the first, and then finds everything ready.
    with (ROOT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(ROOT, STAMP):
            return 0
        try:
            set_up()
        except SetupError as error:
            print(f"\nsetup: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nsetup: interrupted; run it again to finish", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
