"""A random Llama of a few hundred kilobytes, for tests that need a model but not its wisdom."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.gguf_architectures import LAYER_TENSORS
from deploy.gguf_checkpoint import Array, hf_name, write_checkpoint

HEAD_DIM = 16
HIDDEN_SIZE = 64
INTERMEDIATE_SIZE = 128
MAX_POSITIONS = 2048

INIT_STD = 0.3
"""Of all matrices: greedy answers wander instead of looping (tried: 0.1 loops)."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"  # in English by frequency
MAX_VOCAB_SIZE = MIN_VOCAB_SIZE + len(LETTERS) ** 2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    vocab_size: int = 512,
    layers: int = 2,
    query_heads: int = 4,
    kv_heads: int = 2,
) -> Path:
    """Write a checkpoint folder; the same arguments give the same bytes. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    about = metadata(vocab_size, layers, query_heads, kv_heads)
    write_checkpoint(about, dict(_weights(about, np.random.default_rng(seed))), path)
    return path


def metadata(
    vocab_size: int = 512, layers: int = 2, query_heads: int = 4, kv_heads: int = 2
) -> dict[str, Any]:
    """What a GGUF file of the model would say of it."""
    return {
        **_tokenizer_metadata(vocab_size),
        "llama.context_length": MAX_POSITIONS,
        "llama.embedding_length": HIDDEN_SIZE,
        "llama.feed_forward_length": INTERMEDIATE_SIZE,
        "llama.block_count": layers,
        "llama.attention.head_count": query_heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.freq_base": 10_000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": vocab_size,
    }


def byte_tokens() -> list[str]:
    """The letter that stands for each byte 0-255 in a byte-level vocabulary (GPT-2's)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tokenizer_metadata(vocab_size: int) -> dict[str, Any]:
    assert MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE
    pairs = [(first, second) for first in LETTERS for second in LETTERS]
    pairs = pairs[: vocab_size - MIN_VOCAB_SIZE]
    tokens = [*SPECIAL_TOKENS, *byte_tokens(), *(first + second for first, second in pairs)]
    num_normal = vocab_size - len(SPECIAL_TOKENS)
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*[3] * len(SPECIAL_TOKENS), *[1] * num_normal],
        "tokenizer.ggml.merges": [f"{first} {second}" for first, second in pairs],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _weights(about: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    vocab_size, hidden = about["llama.vocab_size"], HIDDEN_SIZE
    query = about["llama.attention.head_count"] * HEAD_DIM
    kv = about["llama.attention.head_count_kv"] * HEAD_DIM
    shapes = {
        "attn_q.weight": (query, hidden),
        "attn_k.weight": (kv, hidden),
        "attn_v.weight": (kv, hidden),
        "attn_output.weight": (hidden, query),
        "ffn_gate.weight": (INTERMEDIATE_SIZE, hidden),
        "ffn_up.weight": (INTERMEDIATE_SIZE, hidden),
        "ffn_down.weight": (hidden, INTERMEDIATE_SIZE),
    }
    yield hf_name("token_embd.weight"), _random(rng, (vocab_size, hidden))
    for layer in range(about["llama.block_count"]):
        for name in LAYER_TENSORS:
            weight = _random(rng, shapes[name]) if name in shapes else _ones(hidden)
            yield hf_name(f"blk.{layer}.{name}"), weight
    yield hf_name("output_norm.weight"), _ones(hidden)
    yield hf_name("output.weight"), _random(rng, (vocab_size, hidden))


def _random(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.normal(0.0, INIT_STD, shape).astype(np.float32)


def _ones(size: int) -> Array:
    return np.ones(size, np.float32)
