"""Which safetensors files of a folder are its weights, and what their headers promise."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from core.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
VALUE_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "U8", "BOOL"})
"""Weights as they are, and the integer buffers that old checkpoints carry; others are quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The weights of one checkpoint, none of them read."""

    paths: tuple[Path, ...]
    """Sorted by name."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor, by its name in the files."""

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.paths)


def weight_files(model_dir: Path) -> WeightFiles:
    """The files transformers would load, each with a whole header and all its bytes.

    Raises ModelError: no safetensors, a damaged or missing file, an index that is wrong.
    """
    if (model_dir / SINGLE_FILE).is_file():
        names: Mapping[str, str] = {}
        paths = [model_dir / SINGLE_FILE]
    elif (model_dir / INDEX_FILE).is_file():
        names = _weight_map(model_dir)
        paths = [model_dir / name for name in sorted(set(names.values()))]
        _check_shards(model_dir, paths)
    else:
        raise ModelError(f"{model_dir}: {_why_none(model_dir)}")
    headers = {path: _header(path) for path in paths}
    for tensor, name in names.items():
        if tensor not in headers[model_dir / name]:
            raise ModelError(f"{model_dir / INDEX_FILE}: {tensor} is not in {name}")
    shapes = {tensor: shape for header in headers.values() for tensor, shape in header.items()}
    return WeightFiles(paths=tuple(paths), shapes=shapes)


def _why_none(model_dir: Path) -> str:
    if shards := sorted(path.name for path in model_dir.glob("*.safetensors")):
        return f"{shards[0]} is neither {SINGLE_FILE} nor named by a {INDEX_FILE}"
    pickles = sorted(
        p.name for ending in ("bin", "pt", "pth") for p in model_dir.glob(f"*.{ending}")
    )
    only = f"; {', '.join(pickles[:5])} would run code when loaded" if pickles else ""
    return f"no *.safetensors weights{only}"


def _weight_map(model_dir: Path) -> dict[str, str]:
    """Tensor → file, as the index has it."""
    path = model_dir / INDEX_FILE
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))
        names = dict(index["weight_map"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: no weight_map can be read: {error}") from error
    if not names:
        raise ModelError(f"{path}: its weight_map is empty")
    for name in names.values():
        # Nothing outside the folder is a part of this model.
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{path}: {name!r} is not the name of a file next to it")
    return names


def _check_shards(model_dir: Path, paths: list[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{model_dir}: {path.name} is missing, {INDEX_FILE} names it")
    # Other files, like Mistral's consolidated.safetensors, are the same weights once more.
    for path in sorted(model_dir.glob("model-*-of-*.safetensors")):
        if path not in paths:
            raise ModelError(f"{model_dir}: {path.name} is not in {INDEX_FILE}")


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by tensor name; safetensors checks every offset against the file's size."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                about = file.get_slice(name)
                dtype = about.get_dtype()
                if dtype not in VALUE_DTYPES:
                    raise ModelError(f"{path}: {name} is {dtype}: quantized, not supported")
                shapes[name] = tuple(about.get_shape())
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or truncated: {error}") from error
    return shapes
