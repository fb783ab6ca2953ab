"""How much memory a model takes on each GPU of a layout, and how many KV tokens fit beside it."""

from dataclasses import dataclass
from math import ceil

from core.parallel import ParallelLayout, split
from policy.model_shape import DTYPE_BYTES, ModelShape

USABLE_SHARE = 0.9
"""Of a GPU's memory, for weights, activations and KV: the rest is CUDA's context, NCCL's buffers,
fragments. vLLM's default (gpu_memory_utilization) is the same."""
STEP_TOKENS = 2048
"""Prompt tokens of one step that activations are counted for, where nothing says otherwise."""
RESIDUALS = 4
"""Vectors as wide as the model alive at once per token: residual, normed, attention's in and out;
attention itself never holds its scores (FlashAttention)."""
INNERS = 2
"""Inner vectors of a feed-forward part alive at once: gate and up."""
ACTIVATION_BYTES = 2
LOGIT_BYTES = 4
"""Logits are float32, one row per request of a step."""
LOGIT_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Of the GPUs of one pipeline stage; all have the same."""

    stage: int
    weight_bytes: float
    activation_bytes: float
    kv_bytes_per_token: float

    def free_bytes(self, gpu_bytes: float, usable_share: float = USABLE_SHARE) -> float:
        """For KV; negative when the rest does not fit."""
        return gpu_bytes * usable_share - self.weight_bytes - self.activation_bytes


def stages(
    shape: ModelShape, layout: ParallelLayout, step_tokens: int = STEP_TOKENS
) -> list[RankMemory]:
    """What each GPU of each pipeline stage holds."""
    return [
        RankMemory(
            stage=stage,
            weight_bytes=_weights(shape, layout, stage) * DTYPE_BYTES[shape.weight_dtype],
            activation_bytes=activation_bytes(shape, layout.tp, step_tokens),
            kv_bytes_per_token=len(split(shape.num_layers, layout.pp, stage))
            * shape.kv_bytes_per_token_and_layer
            * kv_share(shape, layout.tp),
        )
        for stage in range(layout.pp)
    ]


def capacity_tokens(
    shape: ModelShape,
    layout: ParallelLayout,
    gpu_bytes: float,
    *,
    step_tokens: int = STEP_TOKENS,
    usable_share: float = USABLE_SHARE,
) -> int:
    """KV tokens of one instance, as many as its fullest GPU holds; 0 if the weights do not fit."""
    fits = (
        each.free_bytes(gpu_bytes, usable_share) / each.kv_bytes_per_token
        for each in stages(shape, layout, step_tokens)
    )
    return max(0, int(min(fits)))


def kv_share(shape: ModelShape, tp: int) -> float:
    """Of a token's KV that the fullest rank holds: whole heads, and at least one."""
    return ceil(shape.num_kv_heads / tp) / shape.num_kv_heads


def query_share(shape: ModelShape, tp: int) -> float:
    """Of the query heads that the fullest rank holds: those of its KV heads, where it has some."""
    if shape.num_kv_heads >= tp:
        return kv_share(shape, tp)
    return ceil(shape.num_query_heads / tp) / shape.num_query_heads


def activation_bytes(shape: ModelShape, tp: int, step_tokens: int = STEP_TOKENS) -> float:
    """What one step holds at its fullest moment, on each GPU."""
    per_token = RESIDUALS * shape.hidden_size + INNERS * shape.inner_size / tp
    logits = LOGIT_ROWS * shape.vocab_size / tp * LOGIT_BYTES
    return step_tokens * per_token * ACTIVATION_BYTES + logits


def attention_weights_per_rank(shape: ModelShape, tp: int) -> float:
    """Of one layer."""
    whole = shape.replicated_weights
    split_weights = shape.attention_weights - shape.kv_weights - whole
    return whole + shape.kv_weights * kv_share(shape, tp) + split_weights * query_share(shape, tp)


def _weights(shape: ModelShape, layout: ParallelLayout, stage: int) -> float:
    """Values on each GPU of a stage. Layers without experts are taken to be the first ones."""
    layers = split(shape.num_layers, layout.pp, stage)
    num_dense = len(
        range(layers.start, min(layers.stop, max(layers.start, shape.num_dense_layers)))
    )
    total = len(layers) * attention_weights_per_rank(shape, layout.tp)
    total += num_dense * shape.dense_weights / layout.tp
    if shape.experts:
        each = shape.experts.num * shape.experts.weights + shape.experts.shared_weights
        total += (len(layers) - num_dense) * each / layout.tp
    is_first, is_last = stage == 0, stage == layout.pp - 1
    if is_first:
        total += shape.embedding_weights / layout.tp
    # Tied weights are stored once only where one stage both reads and writes tokens.
    if is_last and not (shape.is_tied and is_first):
        total += shape.head_weights / layout.tp
    return total


def transfer_s(num_tokens: int, kv_bytes_per_token: float, bytes_per_s: float) -> float:
    """Of the KV of a prompt over a link that nobody else uses."""
    return num_tokens * kv_bytes_per_token / bytes_per_s
