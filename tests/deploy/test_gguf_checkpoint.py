"""GGUF → checkpoint: nothing of the model is lost or turned around on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, TokenType, dequantize, quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from core.errors import ModelError
from deploy.gguf_architectures import LLAMA, QWEN2, QWEN3, Architecture
from deploy.gguf_checkpoint import CHECKPOINT_FILES, WEIGHTS_FILE, Array, convert_gguf, tokenizer
from deploy.tiny_model import SPECIAL_TOKENS, write_tiny_llama
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
    ("another rotary base", METADATA | {"llama.rope.freq_base_swa": 1e4}, "freq_base_swa"),
    ("a wrong vocabulary size", METADATA | {"llama.vocab_size": 511}, "vocab_size is 511, not 512"),
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


@pytest.mark.parametrize("name", ["phi3", "gemma3", "qwen3moe", "mamba"])
def test_refuses_other_architectures_by_name(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / "odd.gguf", {}, {}, architecture=replace(LLAMA, name=name))
    with pytest.raises(ModelError, match=f"'{name}', only llama, qwen2, qwen3 can be converted"):
        convert(tmp_path / "odd.gguf")


QWEN_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
QWENS: list[tuple[Architecture, PretrainedConfig]] = [
    (QWEN2, Qwen2Config(**QWEN_SHAPE)),
    (QWEN3, Qwen3Config(**QWEN_SHAPE, head_dim=32)),
]


def qwen_metadata(architecture: Architecture, config: Any) -> dict[str, Any]:  # noqa: ANN401
    """As llama.cpp's converter writes it: no vocabulary size, a head's size for Qwen 3 alone."""
    values = {
        **{key: getattr(config, name, None) for key, name in architecture.config_keys.items()},
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    return {
        **{f"{architecture.name}.{key}": value for key, value in values.items()},
        **{key: value for key, value in METADATA.items() if not key.startswith("llama.")},
        "tokenizer.ggml.pre": "qwen2",
    }


def optional(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in NOT_ALWAYS_THERE}


NOT_ALWAYS_THERE = (
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.unknown_token_id",
)


@pytest.mark.parametrize(("architecture", "config"), QWENS, ids=["qwen2", "qwen3"])
def test_a_qwen_comes_back_as_it_was(
    architecture: Architecture, config: PretrainedConfig, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    module: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    metadata = optional(qwen_metadata(architecture, config))
    write_gguf(tmp_path / "qwen.gguf", weights, metadata, architecture=architecture)
    back: Any = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "qwen.gguf"))
    token_ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(back(token_ids).logits, module.eval()(token_ids).logits)
    assert back.config.eos_token_id == METADATA["tokenizer.ggml.eos_token_id"]


TEXTS = ["Hello  world, it's 2024!", "naïve cafe\u0301\n\n  x\r\n\ty", "日本語 <|im_end|>a"]


def test_qwens_text_becomes_the_tokens_that_transformers_has(tmp_path: Path) -> None:
    architecture, config = QWENS[0]
    metadata = qwen_metadata(architecture, config)
    write_gguf(tmp_path / "qwen.gguf", {}, metadata, architecture=architecture)
    ours = Tokenizer.from_file(str(convert(tmp_path / "qwen.gguf") / "tokenizer.json"))
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    # Annotated as a list of strings; pairs are what it takes.
    merges: Any = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = Qwen2Tokenizer(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=merges,
        extra_special_tokens=list(SPECIAL_TOKENS),
    )
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_a_vocabulary_filled_up_has_no_tokens_for_its_filling(tmp_path: Path) -> None:
    types = list(METADATA["tokenizer.ggml.token_type"])
    types[-1] = int(TokenType.UNUSED)
    about = tokenizer(METADATA | {"tokenizer.ggml.token_type": types}, LLAMA)
    assert [token["id"] for token in about["added_tokens"]] == [0, 1, 2]


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
