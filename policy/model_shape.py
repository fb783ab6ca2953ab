"""What a latency and a memory model must know of a transformer: weights, KV and FLOPs, counted."""

from dataclasses import dataclass, replace

from core.errors import ConfigError

DTYPE_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}
"""Of one value. Scales of quantised blocks (a few per cent) are not counted."""
FLOPS_PER_WEIGHT = 2
"""A multiplication and an addition, for each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts that replaces the dense feed-forward part of a layer."""

    num: int
    num_per_token: int
    weights: int
    """Of each expert."""
    shared_weights: int
    """Per layer, used by every token: shared experts and the router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer. Counts are of single values, per layer where they say so."""

    name: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    num_query_heads: int
    num_kv_heads: int
    """What tensor parallelism can split KV into; 1 for MLA, whose latent vector is one piece."""
    kv_values_per_head: int
    """Of one token and layer: K and V, or MLA's compressed vector."""
    prefill_flops_per_pair: int
    """Of one layer, for a prompt token and one that it attends to."""
    decode_flops_per_pair: int
    """Another number for MLA, which decodes on the compressed vectors."""
    attention_weights: int
    """Per layer, norms included."""
    kv_weights: int
    """Of these, what makes K and V: a rank needs at least one head of it."""
    replicated_weights: int
    """Of these, what every rank holds whole."""
    dense_weights: int
    """Of the feed-forward part of a layer without experts."""
    num_dense_layers: int
    inner_size: int
    """Values between the matrices of the widest feed-forward part, per token."""
    experts: Experts | None
    embedding_weights: int
    """Looked up, not multiplied: token and position tables."""
    head_weights: int
    """Of the matrix that gives logits."""
    is_tied: bool
    """The head is the token table again, and stored once."""
    weight_dtype: str = "float16"
    kv_dtype: str = "float16"
    notes: tuple[str, ...] = ()
    """What was left out or capped; one sentence each."""

    @property
    def num_expert_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.num_dense_layers

    @property
    def layer_weights(self) -> int:
        """Of all layers."""
        total = (
            self.num_layers * self.attention_weights + self.num_dense_layers * self.dense_weights
        )
        if self.experts:
            each = self.experts.num * self.experts.weights + self.experts.shared_weights
            total += self.num_expert_layers * each
        return total

    @property
    def active_layer_weights(self) -> int:
        """Of all layers, those that one token is multiplied with."""
        total = self.layer_weights
        if self.experts:
            idle = self.experts.num - self.experts.num_per_token
            total -= self.num_expert_layers * idle * self.experts.weights
        return total

    @property
    def num_weights(self) -> int:
        """All that are stored."""
        head = 0 if self.is_tied else self.head_weights
        return self.layer_weights + self.embedding_weights + head

    @property
    def num_active_weights(self) -> int:
        """As models are advertised: without experts that a token does not visit."""
        head = 0 if self.is_tied else self.head_weights
        return self.active_layer_weights + self.embedding_weights + head

    @property
    def weight_bytes(self) -> float:
        """Of all weights."""
        return self.num_weights * DTYPE_BYTES[self.weight_dtype]

    @property
    def kv_bytes_per_token_and_layer(self) -> float:
        """All heads once."""
        return self.num_kv_heads * self.kv_values_per_head * DTYPE_BYTES[self.kv_dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """Over all layers."""
        return self.num_layers * self.kv_bytes_per_token_and_layer

    def with_dtypes(self, *, weights: str | None = None, kv: str | None = None) -> "ModelShape":
        """The same model stored otherwise. Raises ConfigError."""
        chosen = {"weight_dtype": weights or self.weight_dtype, "kv_dtype": kv or self.kv_dtype}
        known = ", ".join(DTYPE_BYTES)
        problems = tuple(
            f"{name} must be one of {known}, got {dtype!r}"
            for name, dtype in chosen.items()
            if dtype not in DTYPE_BYTES
        )
        if problems:
            raise ConfigError(problems)
        return replace(self, weight_dtype=chosen["weight_dtype"], kv_dtype=chosen["kv_dtype"])
