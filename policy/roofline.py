"""The roofline latency model: any model on any GPU, computed from data sheets."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from core.errors import NoProfile
from core.parallel import ParallelLayout, layout_problems
from policy.decode_table import MAX_BATCH, Curve, batches, decode_table
from policy.hardware import Gpu
from policy.latency_source import Reach, named
from policy.memory import STEP_TOKENS, USABLE_SHARE, capacity_tokens
from policy.model_shape import ModelShape
from policy.roofline_costs import Efficiency, Rank, context_s, pair_s, ridges, token_s
from policy.step_times import StepTimes
from policy.table import Floats

KNOTS_PER_DOUBLING = 4
"""Between them a prefill step is taken to be linear: half a per cent off at most."""
MAX_KNOT = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """One model on one kind of GPU; a `LatencySource`."""

    shape: ModelShape
    gpu: Gpu
    efficiency: Efficiency = field(default_factory=Efficiency)
    max_gpus: int = 8
    """Of one instance, for `layouts`."""
    step_tokens: int = STEP_TOKENS
    """Prompt tokens of one step that memory is kept free for."""
    usable_share: float = USABLE_SHARE
    """Of memory."""
    max_batch: int = MAX_BATCH

    @property
    def name(self) -> str:
        """Model, types and hardware."""
        types = f"{self.shape.weight_dtype} weights, {self.shape.kv_dtype} KV"
        return f"{self.shape.name} ({types}) on {self.gpu.name}, by the roofline"

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self.shape.num_layers

    @property
    def kv_bytes_per_token(self) -> float:
        """Over all layers and heads."""
        return self.shape.kv_bytes_per_token

    @property
    def max_context_tokens(self) -> int:
        """Of one request."""
        return self.shape.max_context_tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of these figures."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        yield "computed from data sheets with assumed efficiencies; nothing was measured"
        yield from self.shape.notes
        if self.shape.weight_dtype == "fp8" and not self.gpu.fp8_flops_per_s:
            yield f"{self.gpu.name} has no fp8 units: products are computed in bfloat16"
        if self.shape.experts:
            yield "experts are taken to be chosen evenly, and split over all ranks of a stage"

    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Up to `max_gpus`, tensor parallelism within a host, that leave room for KV."""
        tps = range(1, min(self.gpu.gpus_per_host, self.max_gpus) + 1)
        pairs = ((tp, pp) for tp in tps for pp in range(1, self.max_gpus // tp + 1))
        found = (ParallelLayout(tp=tp, pp=pp) for tp, pp in pairs)
        return tuple(each for each in found if self._fits(each))

    def _fits(self, layout: ParallelLayout) -> bool:
        return not list(layout_problems(self.shape, layout)) and self._capacity(layout) > 0

    def times(self, layout: ParallelLayout) -> StepTimes:
        """Raises NoProfile for a layout that the model cannot be split into."""
        rank = self._rank(layout)
        batch = batches(self.max_batch)
        base_s = self.efficiency.step_s + token_s(rank, batch, batch)
        decode = decode_table([0], base_s, context_s(rank))
        curve = _prefill_curve(rank)
        return StepTimes(
            prefill_tokens=curve.tokens,
            prefill_s=curve.seconds,
            per_pair_s=pair_s(rank) * _unevenness(rank),
            num_stages=layout.pp,
            stage_s=0.0,
            first_s=self.efficiency.step_s,
            first_per_token_s=0.0,
            decode_starts=decode.starts,
            decode_base_ps=decode.base_ps,
            decode_slope_ps=decode.slope_ps,
            # Weights that prompts have read are not read again for answers.
            shared_s=float(base_s[0, 0]),
            mixed_factor=0.0,
        )

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        """By `policy.memory`; 0 where the weights do not fit. Raises NoProfile."""
        self._rank(layout)
        return self._capacity(layout)

    def reach(self, layout: ParallelLayout) -> Reach:
        """Nothing was measured, so nothing is beyond it."""
        self._rank(layout)
        return Reach()

    def _capacity(self, layout: ParallelLayout) -> int:
        return capacity_tokens(
            self.shape,
            layout,
            self.gpu.memory_bytes,
            step_tokens=self.step_tokens,
            usable_share=self.usable_share,
        )

    def _rank(self, layout: ParallelLayout) -> Rank:
        if problems := list(layout_problems(self.shape, layout)):
            wanted = f"{self.shape.name} as {layout} ({'; '.join(problems)})"
            raise NoProfile(wanted, named(self.layouts()), "choose a layout that divides its heads")
        return Rank(shape=self.shape, gpu=self.gpu, layout=layout, efficiency=self.efficiency)


def knots(rank: Rank) -> Floats:
    """Prompt tokens of a step, closer where steps are short, and where the curve bends."""
    steps = np.arange(0, KNOTS_PER_DOUBLING * np.log2(MAX_KNOT) + 1) / KNOTS_PER_DOUBLING
    bends = np.array([bend + more for bend in ridges(rank) for more in (0, 1)])
    return np.unique(np.floor(np.concatenate([2.0**steps, bends])))


def _prefill_curve(rank: Rank) -> Curve:
    """Of whole prompts: one row of logits per step, as of one prompt."""
    tokens = knots(rank)
    seconds = token_s(rank, tokens, np.ones_like(tokens)) * _unevenness(rank)
    return Curve(tokens, seconds)


def _unevenness(rank: Rank) -> float:
    """Stages with a layer more than others set the pace of all."""
    layers, pp = rank.shape.num_layers, rank.layout.pp
    return ceil(layers / pp) * pp / layers
