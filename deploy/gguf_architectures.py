"""What GGUF files of each architecture that can be converted hold, and what it is called here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ModelError

Metadata = Mapping[str, Any]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SMOLLM_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        BYTE_LEVEL | {"use_regex": True},
    ],
}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": QWEN2_WORDS},
            "behavior": "Isolated",
            "invert": False,
        },
        BYTE_LEVEL | {"trim_offsets": False, "use_regex": False},
    ],
}

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
CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
QWEN_VALUES: dict[str, tuple[object, ...]] = {
    "tokenizer.ggml.model": ("gpt2",),
    "tokenizer.ggml.pre": ("qwen2",),
    "tokenizer.ggml.add_bos_token": (False, None),
    "tokenizer.ggml.add_space_prefix": (False, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the files of one `general.architecture` are read."""

    name: str
    config: Mapping[str, Any]
    """Of config.json, what no key of the file says."""
    config_keys: Mapping[str, str]
    """GGUF's key without the architecture → config.json's; any other such key is refused."""
    token_ids: frozenset[str]
    """Which of TOKEN_ID_KEYS a file must have."""
    values: Mapping[str, tuple[object, ...]]
    """Key → what the conversion can deal with; None where it may be absent."""
    layer_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    interleaved_rope: bool = False
    """Rows of Q and K lie as llama.cpp's first rotary kernel wanted them."""
    normalizer: Mapping[str, Any] | None = None
    pre_tokenizer: Mapping[str, Any]


LLAMA = Architecture(
    name="llama",
    config={
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
    },
    config_keys=CONFIG_KEYS | {"rope.dimension_count": "head_dim", "vocab_size": "vocab_size"},
    token_ids=frozenset(TOKEN_ID_KEYS),
    values={
        "tokenizer.ggml.model": ("gpt2",),
        "tokenizer.ggml.pre": ("smollm",),
        "tokenizer.ggml.add_bos_token": (False,),
        "tokenizer.ggml.add_space_prefix": (False,),
    },
    interleaved_rope=True,
    pre_tokenizer=SMOLLM_PRE_TOKENIZER,
)
QWEN2 = Architecture(
    name="qwen2",
    config={"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    config_keys=CONFIG_KEYS,
    token_ids=frozenset({"eos"}),
    values=QWEN_VALUES,
    layer_tensors=LAYER_TENSORS
    | {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in ("q", "k", "v")},
    normalizer={"type": "NFC"},
    pre_tokenizer=QWEN2_PRE_TOKENIZER,
)
QWEN3 = Architecture(
    name="qwen3",
    config={
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
    },
    # Keys and values of a head are equally long; transformers has one name for both.
    config_keys=CONFIG_KEYS
    | {"attention.key_length": "head_dim", "attention.value_length": "head_dim"},
    token_ids=frozenset({"eos"}),
    values=QWEN_VALUES,
    layer_tensors=LAYER_TENSORS
    | {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in ("q", "k")},
    normalizer={"type": "NFC"},
    pre_tokenizer=QWEN2_PRE_TOKENIZER,
)
ARCHITECTURES = {architecture.name: architecture for architecture in (LLAMA, QWEN2, QWEN3)}


def architecture_of(metadata: Metadata) -> Architecture:
    """Whose file it is; refuses one for which its table is not the whole truth."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"GGUF: general.architecture is {name!r}, only {known} can be converted")
    found = ARCHITECTURES[name]
    for key, wanted in found.values.items():
        if (got := metadata.get(key)) not in wanted:
            raise ModelError(f"GGUF: {key} is {got!r}, only {wanted[0]!r} can be converted")
    own = {f"{name}.{key}" for key in found.config_keys}
    required = own | {TOKEN_ID_KEYS[kind] for kind in found.token_ids}
    unknown = sorted(k for k in metadata if k.startswith(f"{name}.") and k not in own)
    missing = sorted(required - metadata.keys())
    if unknown or missing:
        raise ModelError(f"GGUF: unknown keys {unknown}, missing keys {missing}")
    return found
