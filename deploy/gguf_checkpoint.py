"""GGUF file → Hugging Face checkpoint folder: float32 safetensors, config, tokenizer.

Covers Llama files with SmolLM's tokenizer, and Qwen 2 and 3; refuses what it would convert wrongly.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize
from safetensors.numpy import save_file

from core.errors import ModelError
from deploy.gguf_architectures import (
    BYTE_LEVEL,
    LLAMA,
    TOKEN_ID_KEYS,
    TOP_TENSORS,
    Architecture,
    Metadata,
    architecture_of,
)
from deploy.model_cache import Progress, fsync

Array = npt.NDArray[np.float32]

WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS_FILE,
)


def convert_gguf(gguf_path: Path, out_dir: Path, on_progress: Progress) -> None:
    """Write CHECKPOINT_FILES into the existing `out_dir`, flushed to disk."""
    reader = _open(gguf_path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    architecture = architecture_of(metadata)
    weights = dict(_weights(reader.tensors, metadata, architecture, on_progress))
    write_checkpoint(metadata, weights, out_dir, architecture)
    on_progress("convert", 1.0)


def write_checkpoint(
    metadata: Metadata,
    weights: Mapping[str, Array],
    out_dir: Path,
    architecture: Architecture = LLAMA,
) -> None:
    """A checkpoint folder from GGUF's metadata and Hugging Face's weights."""
    tied = {"tie_word_embeddings": "lm_head.weight" not in weights}
    documents = {
        "config.json": model_config(metadata, architecture) | tied,
        "generation_config.json": generation_config(metadata),
        "tokenizer.json": tokenizer(metadata, architecture),
        "tokenizer_config.json": tokenizer_config(metadata, architecture),
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (out_dir / name).write_text(text + "\n", encoding="utf-8")
    # "pt" tells transformers that the rows lie as torch has them.
    save_file(dict(weights), out_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    for name in CHECKPOINT_FILES:
        fsync(out_dir / name)


def model_config(metadata: Metadata, architecture: Architecture) -> dict[str, Any]:
    """config.json, but for whether the embedding is tied."""
    config: dict[str, Any] = {"vocab_size": len(metadata["tokenizer.ggml.tokens"])}
    for key, name in architecture.config_keys.items():
        value = _exact(metadata[f"{architecture.name}.{key}"])
        if config.setdefault(name, value) != value:
            raise ModelError(f"GGUF: {architecture.name}.{key} is {value}, not {config[name]}")
    return {
        **architecture.config,
        "dtype": "float32",
        "hidden_act": "silu",
        **config,
        **generation_config(metadata),
    }


def generation_config(metadata: Metadata) -> dict[str, int]:
    """generation_config.json: the ids that begin, end and pad an answer."""
    ids = {f"{kind}_token_id": metadata.get(TOKEN_ID_KEYS[kind]) for kind in ("bos", "eos", "pad")}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def tokenizer(metadata: Metadata, architecture: Architecture) -> dict[str, Any]:
    """tokenizer.json, as the `tokenizers` library reads it."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(tokens, metadata["tokenizer.ggml.token_type"])),
        "normalizer": architecture.normalizer,
        "pre_tokenizer": architecture.pre_tokenizer,
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(metadata: Metadata, architecture: Architecture) -> dict[str, Any]:
    """tokenizer_config.json, the chat template included."""
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{kind}_token": tokens[metadata[key]]
        for kind, key in TOKEN_ID_KEYS.items()
        if key in metadata
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata[f"{architecture.name}.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        "chat_template": metadata.get("tokenizer.chat_template"),
    }


def hf_name(gguf_name: str, architecture: Architecture = LLAMA) -> str:
    """A tensor's name in the Hugging Face checkpoint."""
    if gguf_name in TOP_TENSORS:
        return TOP_TENSORS[gguf_name]
    prefix, _, rest = gguf_name.partition(".")
    layer, _, name = rest.partition(".")
    if prefix != "blk" or name not in architecture.layer_tensors:
        raise ModelError(f"GGUF: tensor {gguf_name} has no place in a {architecture.name} model")
    return f"model.layers.{layer}.{architecture.layer_tensors[name]}"


def split_rope_halves(weight: Array, num_heads: int) -> Array:
    """Undo llama.cpp's row order of Q and K.

    GGUF interleaves the two halves of each head, which rotary embeddings pair up;
    Hugging Face has the first half before the second.
    """
    num_pairs = weight.shape[0] // num_heads // 2
    pairs = weight.reshape(num_heads, num_pairs, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _open(gguf_path: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf_path)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{gguf_path} is not a whole GGUF file: {error}") from error


def _weights(
    tensors: Sequence[ReaderTensor],
    metadata: Metadata,
    architecture: Architecture,
    on_progress: Progress,
) -> Iterator[tuple[str, Array]]:
    num_heads = {
        "q_proj": metadata[f"{architecture.name}.attention.head_count"],
        "k_proj": metadata[f"{architecture.name}.attention.head_count_kv"],
    }
    for done, tensor in enumerate(tensors):
        on_progress("convert", done / len(tensors))
        name = hf_name(tensor.name, architecture)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = num_heads.get(name.split(".")[-2]) if architecture.interleaved_rope else None
        yield name, split_rope_halves(weight, heads) if heads else weight


def _added_tokens(tokens: list[str], token_types: list[int]) -> Iterator[dict[str, Any]]:
    matching = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token_id, (token, token_type) in enumerate(zip(tokens, token_types, strict=True)):
        # Unused ones fill the vocabulary up: no text stands for them.
        if token_type not in (TokenType.NORMAL, TokenType.UNUSED):
            special = token_type == TokenType.CONTROL
            yield {"id": token_id, "content": token, **matching, "special": special}


def _exact(value: float) -> float:
    """GGUF stores float32: the shortest decimal that means it is what its author wrote."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
