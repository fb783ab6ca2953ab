"""From what a user calls a model to the checkpoint folder that is served."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ModelError
from core.paths import user_cache_dir
from deploy.default_model import fetch_default_model
from deploy.gguf_checkpoint import convert_gguf
from deploy.hub import PREFIX, Hub, HubModel, HuggingFaceHub, parse_hub_model
from deploy.model_cache import Progress, build_once, file_digest, only_process

CONVERSION = "gguf 1"
"""Counted up when the same GGUF file is to be converted anew, otherwise."""


def resolve_model(
    text: str,
    on_progress: Progress = lambda step, done: None,
    *,
    cache_dir: Path | None = None,
    hub: Hub | None = None,
) -> Path:
    """The checkpoint folder of a model, fetched or converted the first time.

    `text` is a folder, a .gguf file, hf:ORG/NAME@COMMIT, or nothing for the default model;
    `cache_dir` is Baton's own folder. Whether it can be served, `check_model` says.

    Raises:
        ModelError: no such file, no network, no space; says which and what to do.
    """
    cache = cache_dir or user_cache_dir()
    if not text:
        return fetch_default_model(cache, on_progress)
    if text.startswith(PREFIX):
        model = parse_hub_model(text, hub or HuggingFaceHub())
        return _from_hub(model, cache / "models", on_progress, hub or HuggingFaceHub())
    path = Path(text).expanduser().absolute()
    if path.suffix == ".gguf":
        return _from_gguf(path, cache / "models", on_progress)
    return path


def _from_gguf(path: Path, models: Path, on_progress: Progress) -> Path:
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    # The digest, because a file of the same name may be another model tomorrow.
    name = re.sub(r"[^\w.-]", "_", path.stem)
    with _kept_in(models):
        target = models / f"{name}-{file_digest(path, CONVERSION)}"
        build_once(
            target,
            lambda checkpoint, _: convert_gguf(path, checkpoint, on_progress),
            on_progress=on_progress,
        )
    return target


def _from_hub(model: HubModel, models: Path, on_progress: Progress, hub: Hub) -> Path:
    target = models / model.folder_name
    if target.is_dir():
        return target
    with _kept_in(models):
        models.mkdir(parents=True, exist_ok=True)
        with only_process(target.with_name(f"{target.name}.lock"), on_progress):
            if not target.is_dir():
                _download(model, target, on_progress, hub)
    return target


def _download(model: HubModel, target: Path, on_progress: Progress, hub: Hub) -> None:
    # Kept when it fails: the next attempt goes on where this one ended.
    partial = target.with_name(f"{target.name}.download")
    on_progress(f"download {model.repo}", 0.0)
    hub.download(model.repo, model.commit, partial)
    if not any(partial.glob("*.safetensors")):
        raise ModelError(f"{PREFIX}{model.repo}@{model.commit} has no *.safetensors weights")
    partial.rename(target)
    on_progress(f"download {model.repo}", 1.0)


@contextmanager
def _kept_in(models: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"cannot keep the model in {models}: {error}; set XDG_CACHE_HOME to a folder that can "
            "be written to"
        ) from error
