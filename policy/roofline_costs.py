"""Seconds of a transformer's parts on one rank, by the roofline: bytes or FLOPs, whichever last.

Williams, Waterman and Patterson, "Roofline" (2009). Every function takes tokens as a column and
returns a column. What a kernel does not reach of a peak is in `Efficiency`, and only there.
"""

from dataclasses import dataclass, field

import numpy as np

from core.parallel import ParallelLayout
from policy.hardware import Gpu
from policy.memory import attention_weights_per_rank, kv_share, query_share
from policy.model_shape import DTYPE_BYTES, FLOPS_PER_WEIGHT, Experts, ModelShape
from policy.table import Floats

ACTIVATION_BYTES = 2
ALL_REDUCES_PER_LAYER = 2
"""After attention and after the feed-forward part (Megatron-LM, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of a peak, 0 to 1, and fixed costs. Assumed: measure yours with `baton profile`."""

    compute: float = 0.65
    """Of matrix products over thousands of tokens, with norms and activations between them.
    DistServe's own fit (OPT-13B, A100) comes to 0.79, its vLLM's to 0.57."""
    memory: float = 0.8
    """Of reading weights: what large copies reach on HBM."""
    attention: float = 0.5
    """Of prefill attention: FlashAttention-2 reaches 0.5 to 0.7 on A100, -3 up to 0.75 on H100."""
    kv: float = 0.65
    """Of reading paged KV: DistServe's fit for OPT-13B on A100 comes to 0.64."""
    link: float = 0.75
    """Of an all-reduce over NVLink: what nccl-tests report for large messages."""
    network: float = 0.8
    """Of what one port carries, after headers and with a few flows."""
    all_reduce_s: float = 10e-6
    """Of the smallest one: launches and synchronisation of eight ranks."""
    hop_s: float = 20e-6
    """From one pipeline stage to the next, however small."""
    layer_s: float = 20e-6
    """Kernels of one layer start and end: about eight of 2 to 3 µs in a CUDA graph."""
    step_s: float = 2e-3
    """Scheduling, sampling and detokenising between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One GPU of one layout of one model."""

    shape: ModelShape
    gpu: Gpu
    layout: ParallelLayout
    efficiency: Efficiency = field(default_factory=Efficiency)

    @property
    def weight_bytes(self) -> float:
        """Of one weight."""
        return DTYPE_BYTES[self.shape.weight_dtype]

    @property
    def flops_per_s(self) -> float:
        """Reached by matrix products with weights."""
        return self.gpu.flops_per_s(self.shape.weight_dtype) * self.efficiency.compute

    @property
    def memory_bytes_per_s(self) -> float:
        """Reached by reading weights."""
        return self.gpu.memory_bytes_per_s * self.efficiency.memory

    @property
    def peer_bytes_per_s(self) -> float:
        """Reached between the ranks of a stage."""
        if self.layout.tp <= self.gpu.gpus_per_host:
            return self.gpu.link_bytes_per_s * self.efficiency.link
        return self.gpu.network_bytes_per_s * self.efficiency.network

    @property
    def hop_bytes_per_s(self) -> float:
        """Reached between stages."""
        if self.layout.num_workers <= self.gpu.gpus_per_host:
            return self.gpu.link_bytes_per_s * self.efficiency.link
        return self.gpu.network_bytes_per_s * self.efficiency.network


def distinct_experts(experts: Experts, tokens: Floats) -> Floats:
    """Expected number that a batch visits: E · (1 − (1 − k/E)^B).

    The occupancy problem (Feller, volume 1, II.5): a token leaves an expert out with probability
    1 − k/E, B independent tokens all do with its B-th power, and expectations add. Real routers
    are less even, so this is a little too many.
    """
    missed: Floats = (1.0 - experts.num_per_token / experts.num) ** tokens
    return experts.num * (1.0 - missed)


def matrix_s(rank: Rank, weights_read: Floats | float, weights_used: float, rows: Floats) -> Floats:
    """Of products of `rows` tokens, each with `weights_used` of the weights that are read."""
    read_s = weights_read * rank.weight_bytes / rank.memory_bytes_per_s
    compute_s = FLOPS_PER_WEIGHT * rows * weights_used / rank.flops_per_s
    return np.maximum(read_s, compute_s)


def linear_s(rank: Rank, tokens: Floats) -> Floats:
    """Of all layers' matrices."""
    shape, tp = rank.shape, rank.layout.tp
    attention = attention_weights_per_rank(shape, tp)
    total = shape.num_layers * matrix_s(rank, attention, attention, tokens)
    dense = shape.dense_weights / tp
    total = total + shape.num_dense_layers * matrix_s(rank, dense, dense, tokens)
    if shape.experts:
        total = total + shape.num_expert_layers * expert_layer_s(rank, shape.experts, tokens)
    return total


def expert_layer_s(rank: Rank, experts: Experts, tokens: Floats) -> Floats:
    """Of one layer with experts, each of them split over the ranks."""
    tp = rank.layout.tp
    read = distinct_experts(experts, tokens) * experts.weights + experts.shared_weights
    used = experts.num_per_token * experts.weights + experts.shared_weights
    return matrix_s(rank, read / tp, used / tp, tokens)


def ridges(rank: Rank) -> tuple[float, ...]:
    """Tokens from which matrices take longer to compute with than to read."""
    plain = rank.weight_bytes * rank.flops_per_s / (FLOPS_PER_WEIGHT * rank.memory_bytes_per_s)
    if not (experts := rank.shape.experts):
        return (plain,)
    # By then a batch visits almost all of them.
    read = experts.num * experts.weights + experts.shared_weights
    used = experts.num_per_token * experts.weights + experts.shared_weights
    return plain, plain * read / used


def head_s(rank: Rank, rows: Floats) -> Floats:
    """Of logits, one row per request."""
    head = rank.shape.head_weights / rank.layout.tp
    return matrix_s(rank, head, head, rows)


def traffic_s(rank: Rank, tokens: Floats) -> Floats:
    """Between GPUs: all-reduces in every layer, and activations from stage to stage."""
    shape, layout, efficiency = rank.shape, rank.layout, rank.efficiency
    activations = tokens * shape.hidden_size * ACTIVATION_BYTES
    total = np.zeros_like(tokens)
    if layout.tp > 1:
        # A ring moves every byte out and in again, less what stays: 2 · (tp − 1) / tp.
        moved = 2 * (layout.tp - 1) / layout.tp * activations
        each_s = efficiency.all_reduce_s + moved / rank.peer_bytes_per_s
        total = total + ALL_REDUCES_PER_LAYER * shape.num_layers * each_s
    hops = layout.pp - 1
    return total + hops * (efficiency.hop_s + activations / rank.hop_bytes_per_s)


def token_s(rank: Rank, tokens: Floats, rows: Floats) -> Floats:
    """Of a step, all layers and stages, without attention to earlier tokens and without step_s."""
    launches_s = rank.shape.num_layers * rank.efficiency.layer_s
    return linear_s(rank, tokens) + head_s(rank, rows) + traffic_s(rank, tokens) + launches_s


def pair_s(rank: Rank) -> float:
    """Of prefill attention, over all layers, for each (token, token it attends to)."""
    shape = rank.shape
    flops = shape.num_layers * shape.prefill_flops_per_pair * query_share(shape, rank.layout.tp)
    return flops / (rank.gpu.bf16_flops_per_s * rank.efficiency.attention)


def context_s(rank: Rank) -> float:
    """Of decode attention, over all layers, for each token of context: its KV is read, and for
    MLA, where many heads share it, computing with it may take longer."""
    shape, tp = rank.shape, rank.layout.tp
    read = shape.kv_bytes_per_token * kv_share(shape, tp)
    read_s = read / (rank.gpu.memory_bytes_per_s * rank.efficiency.kv)
    flops = shape.num_layers * shape.decode_flops_per_pair * query_share(shape, tp)
    return max(read_s, flops / (rank.gpu.bf16_flops_per_s * rank.efficiency.attention))
