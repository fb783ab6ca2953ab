"""GGUF file → Hugging Face checkpoint folder: float32 safetensors, config, tokenizer.

Covers Llama-architecture files with SmolLM's tokenizer, and refuses what it would convert wrongly.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize
from safetensors.numpy import save_file

from core.errors import ModelError

Progress = Callable[[str, float], None]
"""(step, share of it that is done in [0, 1])."""

Metadata = Mapping[str, Any]
Array = npt.NDArray[np.float32]

WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS_FILE,
)

REQUIRED_VALUES = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
"""What the conversion below takes for granted."""

CONFIG_KEYS = {
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.rope.dimension_count": "head_dim",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.vocab_size": "vocab_size",
}
"""GGUF's name → config.json's. Any other `llama.` key (rope scaling, experts) is refused."""

TOKEN_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
}

TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SMOLLM_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        BYTE_LEVEL | {"use_regex": True},
    ],
}


def convert_gguf(gguf_path: Path, out_dir: Path, on_progress: Progress) -> None:
    """Write CHECKPOINT_FILES into the existing `out_dir`, flushed to disk."""
    reader = _open(gguf_path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    check_convertible(metadata)
    write_checkpoint(metadata, dict(_weights(reader.tensors, metadata, on_progress)), out_dir)
    on_progress("convert", 1.0)


def write_checkpoint(metadata: Metadata, weights: Mapping[str, Array], out_dir: Path) -> None:
    """A checkpoint folder from GGUF's metadata and Hugging Face's weights."""
    tied = {"tie_word_embeddings": "lm_head.weight" not in weights}
    documents = {
        "config.json": model_config(metadata) | tied,
        "generation_config.json": generation_config(metadata),
        "tokenizer.json": tokenizer(metadata),
        "tokenizer_config.json": tokenizer_config(metadata),
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (out_dir / name).write_text(text + "\n", encoding="utf-8")
    # "pt" tells transformers that the rows lie as torch has them.
    save_file(dict(weights), out_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    for name in CHECKPOINT_FILES:
        fsync(out_dir / name)


def check_convertible(metadata: Metadata) -> None:
    """Refuse a file for which the tables of this module are not the whole truth."""
    for key, want in REQUIRED_VALUES.items():
        if (got := metadata.get(key)) != want:
            raise ModelError(f"GGUF: {key} is {got!r}, only {want!r} can be converted")
    unknown = [k for k in metadata if k.startswith("llama.") and k not in CONFIG_KEYS]
    missing = [k for k in (*CONFIG_KEYS, *TOKEN_ID_KEYS.values()) if k not in metadata]
    if unknown or missing:
        raise ModelError(f"GGUF: unknown keys {unknown}, missing keys {missing}")


def model_config(metadata: Metadata) -> dict[str, Any]:
    """config.json, but for whether the embedding is tied."""
    config = {name: _exact(metadata[key]) for key, name in CONFIG_KEYS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **config,
        **generation_config(metadata),
    }


def generation_config(metadata: Metadata) -> dict[str, int]:
    """generation_config.json: the ids that begin, end and pad an answer."""
    return {f"{kind}_token_id": metadata[TOKEN_ID_KEYS[kind]] for kind in ("bos", "eos", "pad")}


def tokenizer(metadata: Metadata) -> dict[str, Any]:
    """tokenizer.json, as the `tokenizers` library reads it."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(tokens, metadata["tokenizer.ggml.token_type"])),
        "normalizer": None,
        "pre_tokenizer": SMOLLM_PRE_TOKENIZER,
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """tokenizer_config.json, the chat template included."""
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {f"{kind}_token": tokens[metadata[key]] for kind, key in TOKEN_ID_KEYS.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        "chat_template": metadata.get("tokenizer.chat_template"),
    }


def hf_name(gguf_name: str) -> str:
    """A tensor's name in the Hugging Face checkpoint."""
    if gguf_name in TOP_TENSORS:
        return TOP_TENSORS[gguf_name]
    prefix, _, rest = gguf_name.partition(".")
    layer, _, name = rest.partition(".")
    if prefix != "blk" or name not in LAYER_TENSORS:
        raise ModelError(f"GGUF: tensor {gguf_name} has no place in a Llama checkpoint")
    return f"model.layers.{layer}.{LAYER_TENSORS[name]}"


def split_rope_halves(weight: Array, num_heads: int) -> Array:
    """Undo llama.cpp's row order of Q and K.

    GGUF interleaves the two halves of each head, which rotary embeddings pair up;
    Hugging Face has the first half before the second.
    """
    num_pairs = weight.shape[0] // num_heads // 2
    pairs = weight.reshape(num_heads, num_pairs, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(gguf_path: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf_path)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{gguf_path} is not a whole GGUF file: {error}") from error


def _weights(
    tensors: Sequence[ReaderTensor], metadata: Metadata, on_progress: Progress
) -> Iterator[tuple[str, Array]]:
    num_heads = {
        "q_proj": metadata["llama.attention.head_count"],
        "k_proj": metadata["llama.attention.head_count_kv"],
    }
    for done, tensor in enumerate(tensors):
        on_progress("convert", done / len(tensors))
        name = hf_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = num_heads.get(name.split(".")[-2])
        yield name, split_rope_halves(weight, heads) if heads else weight


def _added_tokens(tokens: list[str], token_types: list[int]) -> Iterator[dict[str, Any]]:
    matching = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token_id, (token, token_type) in enumerate(zip(tokens, token_types, strict=True)):
        if token_type != TokenType.NORMAL:
            special = token_type == TokenType.CONTROL
            yield {"id": token_id, "content": token, **matching, "special": special}


def _exact(value: float) -> float:
    """GGUF stores float32: the shortest decimal that means it is what its author wrote."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
