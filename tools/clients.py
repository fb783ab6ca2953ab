"""Makes the environment of tests/clients: real clients, apart from Baton's own packages.

python -m tools.clients        make it, or do nothing when it is there; prints its folder
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests/clients/requirements.txt"
FOLDER = ROOT / ".venv/clients"
STAMP = FOLDER / "stamp"
STEP_TIMEOUT_S = 600.0  # about 40 s where the package index is near


class ClientsError(Exception):
    """The environment cannot be made; the message says why."""


def bin_dir() -> Path:
    """Where the clients' programs are, made when they are not there yet."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    with REQUIREMENTS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (STAMP.is_file() and STAMP.read_text() == digest):
            _make()
            STAMP.write_text(digest)
    return FOLDER / "bin"


def _make() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(FOLDER)])
    pip = [str(FOLDER / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*pip, "-r", str(REQUIREMENTS)])
    if shutil.which("promtool") is None and shutil.which("apt-get") is not None:
        _fetch_promtool()


def _fetch_promtool() -> None:
    """Out of Debian's package, without installing the server that it belongs to."""
    with tempfile.TemporaryDirectory(prefix="baton-clients-") as folder:
        try:
            _run(["apt-get", "download", "-q", "prometheus"], cwd=folder)
        except ClientsError:  # a fresh machine has no package lists
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "download", "-q", "prometheus"], cwd=folder)
        [package] = Path(folder).glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", str(package), folder])
        shutil.move(f"{folder}/usr/bin/promtool", FOLDER / "bin/promtool")


def _run(command: list[str], cwd: str | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise ClientsError(f"{' '.join(command)}:\n{done.stdout[-2000:]}")


if __name__ == "__main__":
    print(bin_dir())
