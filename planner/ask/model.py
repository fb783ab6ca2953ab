"""Which model is meant: one that comes with Baton, a config.json, or a folder that holds one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, NoProfile
from policy.model_files import load_shape, preset, presets
from policy.model_shape import DTYPE_BYTES, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's shape, and where its weights are."""

    shape: ModelShape
    folder: str = ""
    """Absolute, of a model that `baton serve` can load; empty: not known."""


def find_model(name: str, *, weight_dtype: str | None = None, kv_dtype: str | None = None) -> Model:
    """By name or path, with other types where they are given. Raises ConfigError, NoProfile."""
    if problems := tuple(_dtype_problems(weight=weight_dtype, kv=kv_dtype)):
        raise ConfigError(problems)
    model = _found(name)
    shape = model.shape.with_dtypes(weights=weight_dtype, kv=kv_dtype)
    return Model(shape=shape, folder=model.folder)


def _found(name: str) -> Model:
    path = Path(name).expanduser()
    if name in presets():
        return Model(shape=preset(name))
    if path.exists():
        folder = (path if path.is_dir() else path.parent).absolute()
        is_whole = any(folder.glob("*.safetensors"))
        return Model(shape=load_shape(path), folder=str(folder) if is_whole else "")
    if path.suffix == ".json" or len(path.parts) > 1:
        raise ConfigError((f"model {name}: there is no such file or folder",))
    raise NoProfile(f"a model named {name!r}", presets(), "give its config.json instead")


def _dtype_problems(**given: str | None) -> Iterator[str]:
    for what, dtype in given.items():
        if dtype is not None and dtype not in DTYPE_BYTES:
            yield f"--{what}-dtype must be of {', '.join(DTYPE_BYTES)}, got {dtype!r}"
