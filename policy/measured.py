"""The measured latency model: what `baton profile` found out about our own engine."""

from dataclasses import dataclass

import numpy as np

from core.errors import NoProfile
from core.parallel import ParallelLayout
from core.profile import ALONE, LayoutProfile, Profile
from policy.decode_table import MAX_BATCH, DecodeTable, batches, decode_table, line
from policy.latency import LatencyModel, latency_model, table_s
from policy.latency_source import Reach, named
from policy.model_shape import ModelShape
from policy.step_times import StepTimes
from policy.table import Floats

REMEDY = "measure it with `baton profile`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A profile.json; a `LatencySource`."""

    profile: Profile
    shape: ModelShape
    """Of the model that was measured."""
    num_blocks: int
    """KV blocks of one instance (`EngineConfig.num_blocks`): a profile does not fix it."""
    condition: str = ALONE
    max_batch: int = MAX_BATCH

    @property
    def name(self) -> str:
        """Model, device and when it was measured."""
        subject = self.profile.subject
        where = f"{subject.device} ({subject.machine.cpu}), {self.profile.measured_at}"
        return f"{subject.model} on {where}, measured {self.condition}"

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self.shape.num_layers

    @property
    def kv_bytes_per_token(self) -> float:
        """Of the engine that was measured."""
        return float(self.profile.subject.kv_bytes_per_token)

    @property
    def max_context_tokens(self) -> int:
        """Of one request."""
        return self.shape.max_context_tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of these figures."""
        error = max(each.condition(self.condition).error.max for each in self.profile.layouts)
        return (
            f"measured on one machine, {self.condition}: at points that were held out the fit is "
            f"off by up to {error:.0%}",
            "a step of several pipeline stages is taken to stay equally long in each",
        )

    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Those that were measured."""
        return tuple(ParallelLayout(tp=each.tp, pp=each.pp) for each in self.profile.layouts)

    def times(self, layout: ParallelLayout) -> StepTimes:
        """Raises NoProfile."""
        model = latency_model(self._of(layout).condition(self.condition))
        return step_times(model, layout.pp, self.max_batch)

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        """Raises NoProfile."""
        self._of(layout)
        return self.num_blocks * self.profile.subject.block_size

    def l_m_tokens(self, layout: ParallelLayout) -> int:
        """Prompt tokens per step that keep the device busy. Raises NoProfile."""
        return self._of(layout).saturation.l_m_tokens

    def reach(self, layout: ParallelLayout) -> Reach:
        """The largest of each that was measured. Raises NoProfile."""
        shapes = [point.shape for point in self._of(layout).condition(self.condition).points]
        prompts = [shape for shape in shapes if shape.kind == "prefill"]
        answers = [shape for shape in shapes if shape.kind == "decode"]
        return Reach(
            prompt_tokens=max((s.num_cached_tokens + s.num_tokens for s in prompts), default=0),
            step_tokens=max((s.num_step_tokens for s in prompts), default=0),
            batch=max((s.batch for s in answers), default=0),
            context_tokens=max((s.num_context_tokens for s in answers), default=0),
        )

    def _of(self, layout: ParallelLayout) -> LayoutProfile:
        if layout not in self.layouts():
            wanted = f"{self.profile.subject.model} as {layout} in this profile"
            raise NoProfile(wanted, named(self.layouts()), REMEDY)
        return self.profile.layout(layout.tp, layout.pp)


def step_times(model: LatencyModel, pp: int, max_batch: int) -> StepTimes:
    """`policy.latency`'s model as the simulator's tables, rounded once."""
    base_s, per_token_s, per_pair_s = (float(value) for value in model.prefill)
    decode = _decode(model, max_batch)
    curve = line(base_s, per_token_s)
    return StepTimes(
        prefill_tokens=curve.tokens,
        prefill_s=curve.seconds,
        per_pair_s=per_pair_s,
        num_stages=pp,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
        decode_starts=decode.starts,
        decode_base_ps=decode.base_ps,
        decode_slope_ps=decode.slope_ps,
        shared_s=min(base_s, float(model.batch_s[0])),
        mixed_factor=0.0,
    )


def _decode(model: LatencyModel, max_batch: int) -> DecodeTable:
    """A segment from each knot of the context to the next; before the first it is level."""
    starts, slopes = _segments(model.contexts, model.context_s)
    of_batch = np.asarray(table_s(model.batches, model.batch_s, batches(max_batch)[:, 0]))
    at_start_s = of_batch[:, None] + np.asarray(table_s(model.contexts, model.context_s, starts))
    return decode_table(starts, at_start_s, slopes)


def _segments(knots: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Starts and slopes of `policy.latency.table_s`."""
    if len(knots) == 1:
        return np.zeros(1), np.zeros(1)
    slopes = np.diff(seconds) / np.diff(knots)
    if knots[0] <= 0:
        return knots[:-1].copy(), slopes
    return np.concatenate([[0.0], knots[:-1]]), np.concatenate([[0.0], slopes])
