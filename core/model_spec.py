"""What must be known of a model to place it, size its KV and pair its instances."""

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WEIGHTS = ("stored", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape of a decoder-only transformer, from its config.json."""

    name: str
    architecture: str
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    """One of DTYPE_BYTES; of weights and KV alike."""
    weights_digest: str
    """Hex digest over all weight bytes; part of the fingerprint."""
    window_tokens: int | None = None
    """How many last tokens, its own included, a token sees where every layer slides; None where
    some layer sees everything."""
    weights: str = "stored"
    """One of WEIGHTS: as `dtype` has them, or linear layers rounded to 8 bits."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers and heads."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]
