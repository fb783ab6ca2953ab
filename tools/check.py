"""`make check`: what is true of the text of the project. All problems, not only the first.

python -m tools.check [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
CHECK_TIMEOUT_S = 600.0  # the slowest, mypy without a cache, takes one to three minutes on 2 cores
AT_ONCE = 2  # the smallest machine this is meant for has 2 cores

# The slowest first, so that the others run beside them.
CHECKS: dict[str, list[str]] = {
    "types": [str(SCRIPTS / "mypy")],
    "guard": [sys.executable, "-m", "pytest", "-q", "--no-header", "tests/guard"],
    "imports": [str(SCRIPTS / "lint-imports")],
    "contract": [sys.executable, "-m", "tools.proto", "--check"],
    "pictures": [sys.executable, "-m", "tools.lifecycle", "--check"],
    "lint": [str(SCRIPTS / "ruff"), "check"],
    "format": [str(SCRIPTS / "ruff"), "format", "--check"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    name: str
    passed: bool
    output: str
    took_s: float


def run(name: str) -> Result:
    started_s = time.monotonic()
    try:
        done = subprocess.run(
            CHECKS[name],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
        passed, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as error:
        passed, output = False, f"{(error.stdout or b'').decode()}\nnot done in {error.timeout} s"
    return Result(
        name=name, passed=passed, output=output.strip(), took_s=time.monotonic() - started_s
    )


def show(result: Result) -> None:
    lines = result.output.splitlines() or [""]
    word = "ok  " if result.passed else "FAIL"
    print(f"{word} {result.name:<9}{result.took_s:5.1f} s  {lines[-1].strip('= ')}", flush=True)
    if not result.passed:
        print(*(f"     {line}" for line in lines), sep="\n", flush=True)


def main(names: list[str]) -> int:
    if unknown := set(names) - set(CHECKS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
        return 2
    started_s = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(run, name) for name in CHECKS if name in (names or CHECKS)]
        results = []
        for done in as_completed(running):
            results.append(done.result())
            show(done.result())
    num_failed = sum(not result.passed for result in results)
    print(
        f"{len(results) - num_failed} of {len(results)} hold [{time.monotonic() - started_s:.0f} s]"
    )
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
