"""DistServe's published latency model: OPT on A100-80G, fitted by its authors, in milliseconds."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from core.errors import NoProfile
from core.parallel import ParallelLayout
from policy.decode_table import MAX_BATCH, batches, decode_table, line
from policy.latency_source import Reach, named
from policy.model_files import preset
from policy.model_shape import ModelShape
from policy.published_data import read_csv, read_json
from policy.step_times import StepTimes

PROFILES = {"distserve": "distserve_a100_80g.json", "vllm": "vllm_a100_80g.json"}
"""Both were measured by DistServe's authors, on the same machine: the engines differ."""
CAPACITIES = "distserve_kv_capacity.csv"
MODELS = {"opt-13b": "facebook/opt-13b", "opt-66b": "facebook/opt-66b"}
CAPACITY_MODELS = {**MODELS, "opt-175b": "facebook/opt-175b"}
MS = 1e-3
STAGE_S_PER_PP = 1.0 * MS
"""Published: every prefill stage takes 1 ms times the number of stages more."""
OVERHEAD_S = 2.0 * MS
"""Published as "Ray overhead": of every step in the first stage, prefill and decode alike."""
OVERHEAD_S_PER_TOKEN = 1e-4 * MS
"""For each prompt token of a prefill step, each earlier context token of a decode step."""
MAX_MEASURED_PROMPT, MAX_MEASURED_BATCH = 2020, 192
MEASURED_TOKENS = {
    ("opt-13b", 1): 49_152,
    ("opt-13b", 2): 98_304,
    ("opt-13b", 4): 250_000,
    ("opt-66b", 2): 8_192,
    ("opt-66b", 3): 36_864,
    ("opt-66b", 4): 65_000,
}
"""Tokens of all prompts of a step at most, from DistServe's profiling script."""


class Parameters(NamedTuple):
    """Of one model and tensor parallelism: seconds."""

    prefill: tuple[float, float, float]
    """[base, per prompt token, per prompt token squared, prompt by prompt]."""
    small: tuple[float, float, float]
    """[base, per context token, per answer] of decode below `threshold` answers."""
    large: tuple[float, float, float]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What a step costs in the first pipeline stage besides computing."""

    step_s: float = OVERHEAD_S
    per_token_s: float = OVERHEAD_S_PER_TOKEN


NO_OVERHEAD = Overhead(step_s=0.0, per_token_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistServe:
    """One model's published parameters; a `LatencySource`.

    Prefill: (a + b·Σl + c·Σl²) / pp + 1 ms · pp in each stage. Decode: (a + b·Σcontext + c·B) / pp
    in each, with two parameter sets. They do not meet: a step of 95 answers is quicker than one
    of 94. That is kept as published.
    """

    model: str
    """One of MODELS."""
    engine: str = "distserve"
    """One of PROFILES: whose steps were measured."""
    overhead: Overhead = field(default_factory=Overhead)
    max_batch: int = MAX_BATCH

    def __post_init__(self) -> None:
        if self.engine not in PROFILES:
            raise NoProfile(f"engine {self.engine}", tuple(PROFILES), "name one of them")
        if self.model not in MODELS:
            raise NoProfile(f"{self.model} from DistServe", tuple(MODELS), REMEDY)

    @property
    def name(self) -> str:
        """Model, hardware and engine."""
        return f"{self.model} on A100-80G, published by DistServe for its {self.engine} engine"

    @property
    def shape(self) -> ModelShape:
        """Of the model."""
        return preset(self.model)

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self.shape.num_layers

    @property
    def kv_bytes_per_token(self) -> float:
        """float16."""
        return self.shape.kv_bytes_per_token

    @property
    def max_context_tokens(self) -> int:
        """OPT's learned positions end there."""
        return self.shape.max_context_tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of these figures."""
        return (
            "pipeline stages were not measured: the published form divides a step by their number",
            "decode is not monotone in the batch: 95 answers take less time than 94",
            "the engine is DistServe's artefact or the vLLM of its time (2024), not Baton",
        )

    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Where both parameters and capacity were published."""
        known = parameters(self.model, self.engine)
        return tuple(each for each in capacities(self.model) if each.tp in known)

    def times(self, layout: ParallelLayout) -> StepTimes:
        """Raises NoProfile where its tensor parallelism was not measured."""
        return step_times(self._parameters(layout), layout.pp, self.overhead, self.max_batch)

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        """Raises NoProfile."""
        return capacity_tokens(self.model, layout)

    def reach(self, layout: ParallelLayout) -> Reach:
        """Batches of equal prompts, from DistServe's profiling script."""
        self._parameters(layout)
        tokens = MEASURED_TOKENS.get((self.model, layout.tp))
        return Reach(
            prompt_tokens=MAX_MEASURED_PROMPT,
            step_tokens=tokens,
            batch=MAX_MEASURED_BATCH,
            context_tokens=tokens,
        )

    def _parameters(self, layout: ParallelLayout) -> Parameters:
        known = parameters(self.model, self.engine)
        if layout.tp not in known:
            wanted = f"{self.model} with tp = {layout.tp} from DistServe's {self.engine} profile"
            raise NoProfile(wanted, tuple(f"tp = {tp}" for tp in known), REMEDY)
        return known[layout.tp]

    def without_overhead(self) -> "DistServe":
        """The bare parameters: steps without what their simulator adds for Ray."""
        return replace(self, overhead=NO_OVERHEAD)


REMEDY = "measure it with `baton profile`, or compute it with the roofline model"


def parameters(model: str, engine: str) -> dict[int, Parameters]:
    """By tensor parallelism, in seconds."""
    published = read_json(PROFILES[engine])[MODELS[model]]
    return {int(tp): _parameters(values) for tp, values in published.items()}


def _parameters(values: dict[str, list[float]]) -> Parameters:
    def seconds(name: str) -> tuple[float, float, float]:
        a, b, c = values[name]
        return a * MS, b * MS, c * MS

    threshold = values["decoding_large_small_bs_threshold"]
    return Parameters(
        prefill=seconds("prefill"),
        small=seconds("decoding_smallbs"),
        large=seconds("decoding_largebs"),
        threshold=int(threshold),  # type: ignore[call-overload]
    )


def step_times(found: Parameters, pp: int, overhead: Overhead, max_batch: int) -> StepTimes:
    """The published forms, over all pipeline stages."""
    base_s, per_token_s, per_square_s = found.prefill
    batch = batches(max_batch)
    is_large = batch >= found.threshold
    a, b, c = (np.where(is_large, *pair) for pair in zip(found.large, found.small, strict=True))
    # Overhead counts the context before the step, the tables count it after: one less each.
    at_start_s = a + overhead.step_s + (c - overhead.per_token_s) * batch
    decode = decode_table([0], at_start_s, b + overhead.per_token_s)
    # Of one prompt l² = 2 · pairs − l, with pairs = l · (l + 1) / 2.
    curve = line(base_s, per_token_s - per_square_s)
    return StepTimes(
        prefill_tokens=curve.tokens,
        prefill_s=curve.seconds,
        per_pair_s=2 * per_square_s,
        num_stages=pp,
        stage_s=STAGE_S_PER_PP * pp,
        first_s=overhead.step_s,
        first_per_token_s=overhead.per_token_s,
        decode_starts=decode.starts,
        decode_base_ps=decode.base_ps,
        decode_slope_ps=decode.slope_ps,
        shared_s=min(base_s, found.small[0]) + overhead.step_s,
        mixed_factor=0.0,
    )


def capacities(model: str) -> dict[ParallelLayout, int]:
    """KV tokens by layout."""
    return {
        ParallelLayout(tp=int(row["tp"]), pp=int(row["pp"])): int(row["max_num_tokens"])
        for row in read_csv(CAPACITIES)
        if row["model"] == CAPACITY_MODELS[model]
    }


def capacity_tokens(model: str, layout: ParallelLayout) -> int:
    """KV tokens that one instance on A100-80G holds, as published. Raises NoProfile."""
    known = capacities(model)
    if layout not in known:
        remedy = "compute it with `policy.memory`"
        raise NoProfile(f"the KV capacity of {model} as {layout}", named(tuple(known)), remedy)
    return known[layout]
