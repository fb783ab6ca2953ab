"""Whether a model folder can be served, asked before anything is started.

In a process of its own: whoever starts a cluster needs no torch, and keeps its memory.
"""

import asyncio
import hashlib
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ModelError
from core.parallel import ParallelLayout
from core.paths import user_cache_dir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 120.0
"""4 s on two cores, nearly all of it imports; cold disks and busy machines take longer."""
ROOT = Path(__file__).parents[1]
MAX_STAMPS = 64
"""More models than one machine serves; older ones are checked again."""
CHECKED_FILES = ("*.safetensors", "*.json")


async def check_model(
    model_dir: Path, cache_dir: Path | None = None, layouts: Iterable[ParallelLayout] = ()
) -> None:
    """Raise ModelError when the folder cannot be served in these layouts: see `engine.checkpoint`.

    A folder that passed and has not changed since is not looked at again. `cache_dir` is
    Baton's own folder.
    """
    names = sorted({str(layout) for layout in layouts if layout.num_workers > 1})
    stamp = (cache_dir or user_cache_dir()) / "checked" / state_digest(model_dir, names)
    if stamp.is_file():
        return
    report = await _ask(model_dir, names)
    if why := report.get("error"):
        raise ModelError(str(why))
    if ignored := report.get("ignored_tensors"):
        logger.warning("%s: %d tensors unused: %s", model_dir, len(ignored), ", ".join(ignored[:5]))
    _leave(stamp, report)


def state_digest(model_dir: Path, layouts: Sequence[str] = ()) -> str:
    """Of all that the check looks at: files by path, size and time, and who would load them how."""
    # Relative paths mean another folder in another place.
    state = [
        str(model_dir.absolute()),
        version("transformers"),
        version("torch"),
        *layouts,
        *_states(model_dir),
    ]
    for path in sorted((ROOT / "engine").glob("**/*.py")):
        state += _state(path)
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _states(model_dir: Path) -> Iterator[str]:
    for path in sorted(path for kind in CHECKED_FILES for path in model_dir.glob(kind)):
        yield from _state(path)


def _state(path: Path) -> tuple[str, str]:
    try:
        about = path.stat()
    except OSError:  # a link to nothing: the check says so
        return str(path.absolute()), "unreadable"
    return str(path.absolute()), f"{about.st_size} {about.st_mtime_ns}"


async def _ask(model_dir: Path, layouts: Sequence[str]) -> dict[str, Any]:
    """The one line that `python -m engine.checkpoint` prints."""
    async with _checker(_command(model_dir, layouts)) as process:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                out, errors = await process.communicate()
        except TimeoutError:
            raise ModelError(
                f"{model_dir}: its check did not end in {CHECK_TIMEOUT_S:.0f} s"
            ) from None
    try:
        report = json.loads(out)
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        raise ModelError(
            f"{model_dir}: its check ended with status {process.returncode}: {last}"
        ) from None
    assert isinstance(report, dict)
    return report


def _command(model_dir: Path, layouts: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "engine.checkpoint", "--model-dir", str(model_dir.absolute())]
    for layout in layouts:
        command += ["--layout", layout]
    return command


@asynccontextmanager
async def _checker(command: Sequence[str]) -> "AsyncIterator[Process]":
    """The process; killed if the block ends before it."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,  # so that `engine` is the one next to this file
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _leave(stamp: Path, report: dict[str, Any]) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(report) + "\n", encoding="utf-8")
        newest_first = sorted(stamp.parent.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
        for old in newest_first[MAX_STAMPS:]:
            old.unlink(missing_ok=True)
    except OSError as error:  # then the next start checks again
        logger.warning("cannot note that a model was checked: %s", error)
