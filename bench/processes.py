"""Instances and routers as plain processes: what is measured here needs no Ray."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Service:
    """One running process."""

    address: str
    process: "subprocess.Popen[str]"


@contextmanager
def service(module: str, spec_json: str) -> Iterator[Service]:
    """Run `python -m module --spec-json …` until the block ends; it dies with us."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--spec-json", spec_json],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # A process that ends without a line gives an empty one; one that hangs is the caller's
        # time limit.
        line = cast("IO[str]", process.stdout).readline()
        if not line:
            raise RuntimeError(f"{module} ended with status {process.wait(STOP_TIMEOUT_S)}")
        yield Service(json.loads(line)["address"], process)
    finally:
        cast("IO[str]", process.stdin).close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
