"""GGUF → checkpoint: nothing of the model is lost or turned around on the way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.numpy import load_file

from core.errors import ModelError
from deploy.gguf_checkpoint import CHECKPOINT_FILES, WEIGHTS_FILE, Array, convert_gguf
from deploy.tiny_model import write_tiny_llama
from tests.deploy.gguf_files import METADATA, join_rope_halves, write_gguf

JSON_FILES = [name for name in CHECKPOINT_FILES if name != WEIGHTS_FILE]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


@pytest.fixture
def weights(tiny: Path) -> dict[str, Array]:
    return load_file(tiny / WEIGHTS_FILE)


def convert(gguf: Path) -> Path:
    out = gguf.parent / "out"
    out.mkdir()
    convert_gguf(gguf, out, lambda step, done: None)
    return out


def test_a_checkpoint_comes_back_as_it_was(tiny: Path, weights: dict[str, Array]) -> None:
    write_gguf(tiny.parent / "tiny.gguf", weights)
    out = convert(tiny.parent / "tiny.gguf")
    got = load_file(out / WEIGHTS_FILE)
    assert got.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(got[name], weight, err_msg=name)
    for name in JSON_FILES:
        assert json.loads((out / name).read_text()) == json.loads((tiny / name).read_text())


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
def test_quantised_weights_become_what_they_stand_for(
    tiny: Path, weights: dict[str, Array], kind: GGMLQuantizationType
) -> None:
    write_gguf(tiny.parent / "tiny.gguf", weights, matrices_as=kind)
    got = load_file(convert(tiny.parent / "tiny.gguf") / WEIGHTS_FILE)
    for name in (name for name, weight in weights.items() if weight.ndim == 2):
        want = dequantize(quantize(join_rope_halves(name, weights[name]), kind), kind)
        np.testing.assert_array_equal(join_rope_halves(name, got[name]), want, err_msg=name)


def test_a_tied_embedding_is_stored_once(tiny: Path, weights: dict[str, Array]) -> None:
    del weights["lm_head.weight"]
    write_gguf(tiny.parent / "tied.gguf", weights)
    out = convert(tiny.parent / "tied.gguf")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(out / WEIGHTS_FILE)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in METADATA.items() if name != key}


REFUSED = [
    # id, metadata, what the message names
    ("another architecture's words", METADATA | {"llama.rope.scaling.type": "linear"}, "scaling"),
    ("another pre-tokenizer", METADATA | {"tokenizer.ggml.pre": "qwen2"}, "qwen2"),
    ("a missing key", without("llama.block_count"), "llama.block_count"),
    ("a beginning token", METADATA | {"tokenizer.ggml.add_bos_token": True}, "add_bos_token"),
]


@pytest.mark.parametrize(
    ("metadata", "reason"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refuses_what_it_would_convert_wrongly(
    tmp_path: Path, metadata: dict[str, Any], reason: str
) -> None:
    write_gguf(tmp_path / "odd.gguf", {}, metadata)
    with pytest.raises(ModelError, match=reason):
        convert(tmp_path / "odd.gguf")


def test_refuses_tensors_it_has_no_place_for(tmp_path: Path, weights: dict[str, Array]) -> None:
    norm = weights["model.norm.weight"]
    for name in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        write_gguf(tmp_path / "odd.gguf", {name: norm})
    content = (tmp_path / "odd.gguf").read_bytes()
    (tmp_path / "odd.gguf").write_bytes(
        content.replace(b"output_norm.weight", b"rope_freqs.weights")
    )
    with pytest.raises(ModelError, match="rope_freqs"):
        convert(tmp_path / "odd.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"not a GGUF file at all, but long enough"])
def test_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        convert(tmp_path / "bad.gguf")


def test_refuses_a_file_that_was_cut_off(tiny: Path, weights: dict[str, Array]) -> None:
    path = tiny.parent / "cut.gguf"
    write_gguf(path, weights)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        convert(path)
