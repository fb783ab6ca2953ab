"""Reads a model's shape off its Hugging Face config.json; what it cannot count it names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from core.errors import ConfigError
from policy.model_shape import DTYPE_BYTES, FLOPS_PER_WEIGHT, Experts, ModelShape

Config: TypeAlias = Mapping[str, Any]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_kv_heads": ("num_key_value_heads",),
    "ffn_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "max_context": ("max_position_embeddings", "n_positions", "seq_length", "n_ctx"),
    "vocab_size": ("vocab_size",),
    "head_dim": ("head_dim",),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token"),
    "num_shared_experts": ("n_shared_experts",),
    "expert_size": ("moe_intermediate_size",),
    "shared_expert_size": ("shared_expert_intermediate_size",),
}
"""One size has had many names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a model_type's config does not say because its code does."""

    is_gated: bool = True
    """Three matrices in the feed-forward part, two otherwise."""
    is_tied: bool = False
    """What a missing tie_word_embeddings means."""
    has_biases: bool = False
    """Every linear layer and norm has one."""
    has_qkv_biases: bool = False
    has_head_norms: bool = False
    """A norm over each query and each key head."""
    num_norms: int = 2
    """Per layer."""
    position_offset: int | None = None
    """Learned positions: as many rows more than the context is long."""
    has_embedding_norm: bool = False
    default_context: int | None = None
    """Where positions have no limit, and the config names none."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "phi3": Family(),
    "smollm3": Family(is_tied=True),
    "gemma": Family(is_tied=True),
    "gemma2": Family(is_tied=True, num_norms=4),
    "qwen2": Family(has_qkv_biases=True),
    "qwen2_moe": Family(has_qkv_biases=True),
    "qwen3": Family(has_head_norms=True),
    "qwen3_moe": Family(has_head_norms=True),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "kimi_k2": Family(),
    "opt": Family(is_gated=False, is_tied=True, has_biases=True, position_offset=2),
    "gpt2": Family(is_gated=False, is_tied=True, has_biases=True, position_offset=0),
    "gpt_neox": Family(is_gated=False, has_biases=True),
    "bloom": Family(
        is_gated=False, is_tied=True, has_biases=True, has_embedding_norm=True, default_context=2048
    ),
}


@dataclass(slots=True)
class Reader:
    """One config, and every problem found in it."""

    config: Config
    problems: list[str] = field(default_factory=list)

    def whole(self, name: str, default: int | None = None) -> int:
        """A count by any of its names; a problem, and 1, where there is none."""
        for alias in ALIASES.get(name, (name,)):
            value = self.config.get(alias)
            if value is None:
                continue
            if type(value) is not int or value < 0:
                self.problems.append(f"{alias} must be a whole number from 0, got {value!r}")
                return 1
            return value
        if default is None:
            self.problems.append(f"none of {', '.join(ALIASES.get(name, (name,)))} is given")
            return 1
        return default


def shape_of(config: Config, name: str) -> ModelShape:
    """Count a model. Raises ConfigError with every problem."""
    config = text_config(config)
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError((f"{name}: model_type {kind!r} cannot be counted, only {known}",))
    reader = Reader(config)
    shape = _shape(reader, FAMILIES[kind], name)
    if reader.problems:
        raise ConfigError(tuple(f"{name}: {problem}" for problem in reader.problems))
    return shape


def text_config(config: Config) -> Config:
    """Of a model that also sees or hears, the part that writes."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) and "model_type" in inner else config


def _shape(reader: Reader, family: Family, name: str) -> ModelShape:
    hidden, layers = reader.whole("hidden_size"), reader.whole("num_layers")
    vocab = reader.whole("vocab_size")
    context, notes = _context(reader, family)
    attention = _latent(reader) if "kv_lora_rank" in reader.config else _heads(reader, family)
    norms = family.num_norms * hidden * (2 if family.has_biases else 1)
    experts, num_dense = _experts(reader, family, layers)
    embedding, head = _tables(reader, family, context)
    dtype = weight_dtype(reader)
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocab,
        max_context_tokens=context,
        num_query_heads=reader.whole("num_heads"),
        num_kv_heads=attention.num_kv_heads,
        kv_values_per_head=attention.kv_values_per_head,
        prefill_flops_per_pair=attention.prefill_flops_per_pair,
        decode_flops_per_pair=attention.decode_flops_per_pair,
        attention_weights=attention.weights + norms,
        kv_weights=attention.kv_weights,
        replicated_weights=attention.replicated_weights + norms,
        dense_weights=_feed_forward(hidden, reader.whole("ffn_size", 4 * hidden), family),
        num_dense_layers=num_dense,
        inner_size=_inner_size(reader, experts),
        experts=experts,
        embedding_weights=embedding,
        head_weights=head,
        is_tied=bool(reader.config.get("tie_word_embeddings", family.is_tied)),
        weight_dtype=dtype,
        # Engines keep KV in 16 bits unless they are told otherwise, whatever the weights are.
        kv_dtype="float32" if dtype == "float32" else "float16",
        notes=notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention part of one layer; see `ModelShape` for each."""

    weights: int
    kv_weights: int
    replicated_weights: int
    num_kv_heads: int
    kv_values_per_head: int
    prefill_flops_per_pair: int
    decode_flops_per_pair: int


def _heads(reader: Reader, family: Family) -> Attention:
    """Multi-head, grouped-query and multi-query attention."""
    hidden, heads = reader.whole("hidden_size"), max(1, reader.whole("num_heads"))
    size = reader.whole("head_dim", hidden // heads)
    kv_heads = reader.whole("num_kv_heads", heads)
    if not 1 <= kv_heads <= heads or heads % kv_heads:
        reader.problems.append(f"{heads} attention heads cannot share {kv_heads} KV heads")
    queries, keys = heads * size, kv_heads * size
    matrices = hidden * (queries + 2 * keys) + queries * hidden
    qkv_biases = queries + 2 * keys if family.has_qkv_biases or family.has_biases else 0
    norms = 2 * size if family.has_head_norms else 0
    flops = FLOPS_PER_WEIGHT * 2 * queries  # scores and their sum over the values
    return Attention(
        weights=matrices + qkv_biases + (hidden if family.has_biases else 0) + norms,
        kv_weights=2 * hidden * keys,
        replicated_weights=norms,
        num_kv_heads=kv_heads,
        kv_values_per_head=2 * size,
        prefill_flops_per_pair=flops,
        decode_flops_per_pair=flops,
    )


def _latent(reader: Reader) -> Attention:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): one compressed vector per token.

    Decode never expands it: queries are taken into the compressed space, so each pair costs more
    FLOPs and each token fewer bytes.
    """
    hidden, heads = reader.whole("hidden_size"), reader.whole("num_heads")
    latent, rope = reader.whole("kv_lora_rank"), reader.whole("qk_rope_head_dim")
    plain, values = reader.whole("qk_nope_head_dim"), reader.whole("v_head_dim")
    query_rank = reader.whole("q_lora_rank", 0)
    # A rank of 0 (null in the config) means that queries are not compressed.
    down = hidden * query_rank + query_rank if query_rank else 0
    query = (query_rank or hidden) * heads * (plain + rope)
    compress = hidden * (latent + rope) + latent
    expand = latent * heads * (plain + values)
    return Attention(
        weights=down + query + compress + expand + heads * values * hidden,
        kv_weights=0,
        replicated_weights=down + compress,
        num_kv_heads=1,
        kv_values_per_head=latent + rope,
        prefill_flops_per_pair=FLOPS_PER_WEIGHT * heads * (plain + rope + values),
        decode_flops_per_pair=FLOPS_PER_WEIGHT * heads * (2 * latent + rope),
    )


def _feed_forward(hidden: int, size: int, family: Family) -> int:
    biases = size + hidden if family.has_biases else 0
    return (3 if family.is_gated else 2) * hidden * size + biases


def _experts(reader: Reader, family: Family, num_layers: int) -> tuple[Experts | None, int]:
    """The experts of a layer, and how many layers are dense."""
    num = reader.whole("num_experts", 0)
    if num < 2:
        return None, num_layers
    hidden, per_token = reader.whole("hidden_size"), reader.whole("experts_per_token")
    if not 1 <= per_token <= num:
        reader.problems.append(f"{per_token} of {num} experts per token cannot be")
    size = reader.whole("expert_size", reader.whole("ffn_size", 4 * hidden))
    shared_size = reader.whole("shared_expert_size", reader.whole("num_shared_experts", 0) * size)
    shared = _feed_forward(hidden, shared_size, family) if shared_size else 0
    # Qwen2-MoE weighs its shared expert by a gate of one row.
    gate = hidden if "shared_expert_intermediate_size" in reader.config else 0
    experts = Experts(
        num=num,
        num_per_token=per_token,
        weights=_feed_forward(hidden, size, family),
        shared_weights=shared + gate + num * hidden,
    )
    return experts, len(tuple(_dense_layers(reader, num_layers)))


def _inner_size(reader: Reader, experts: Experts | None) -> int:
    hidden = reader.whole("hidden_size")
    size = reader.whole("ffn_size", 4 * hidden)
    if experts is None:
        return size
    return max(size, experts.num_per_token * reader.whole("expert_size", size))


def _dense_layers(reader: Reader, num_layers: int) -> Iterator[int]:
    """Layers without experts: the first few, listed ones, or all but every n-th."""
    first = reader.whole("first_k_dense_replace", 0)
    listed = reader.config.get("mlp_only_layers") or ()
    step = reader.whole("decoder_sparse_step", reader.whole("moe_layer_freq", 1)) or 1
    for layer in range(num_layers):
        if layer < first or layer in listed or (step > 1 and (layer + 1) % step):
            yield layer


def _tables(reader: Reader, family: Family, context: int) -> tuple[int, int]:
    """Values of what is looked up, and of the head with the last norm and projections."""
    hidden, vocab = reader.whole("hidden_size"), reader.whole("vocab_size")
    # OPT-350M alone has narrower embeddings, and a projection at either end.
    width = reader.whole("word_embed_proj_dim", hidden)
    projections = 2 * hidden * width if width != hidden else 0
    embedding = vocab * width + projections
    if family.position_offset is not None:
        embedding += (context + family.position_offset) * hidden
    norm = hidden * (2 if family.has_biases else 1)
    if family.has_embedding_norm:
        embedding += norm
    return embedding + norm, vocab * width


def _context(reader: Reader, family: Family) -> tuple[int, tuple[str, ...]]:
    """The longest context, and what sliding windows make of it."""
    context = reader.whole("max_context", family.default_context)
    window = reader.config.get("sliding_window")
    if type(window) is not int or reader.config.get("use_sliding_window") is False:
        return context, ()
    if _slides_everywhere(reader.config):
        capped = min(context, window)
        if capped == context:
            return context, ()
        return capped, (f"sliding window: contexts are capped at its {window:,} tokens",)
    note = f"some layers slide over {window:,} tokens: counted as if every layer saw everything"
    return context, (note,)


def _slides_everywhere(config: Config) -> bool:
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return all(kind == "sliding_attention" for kind in kinds)
    return config.get("model_type") in ("mistral", "mixtral", "phi3")


def weight_dtype(reader: Reader) -> str:
    """One of DTYPE_BYTES: of the quantisation if there is one, else of the tensors."""
    quantised = reader.config.get("quantization_config")
    if isinstance(quantised, Mapping):
        method, bits = str(quantised.get("quant_method")), quantised.get("bits")
        found = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "int4"}.get(method)
        found = found or {4: "int4", 8: "int8"}.get(bits if isinstance(bits, int) else 0)
        if found:
            return found
        reader.problems.append(f"quantization {method!r} cannot be counted")
    dtype = str(reader.config.get("dtype") or reader.config.get("torch_dtype") or "float16")
    if dtype not in DTYPE_BYTES:
        reader.problems.append(f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype!r}")
        return "float16"
    return dtype
