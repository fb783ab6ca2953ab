"""Splitwise's latency models: the look-up of its published simulator, and a fit to its table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.errors import NoProfile
from core.parallel import ParallelLayout
from policy.decode_table import MAX_BATCH, Curve, batches, decode_table
from policy.latency_fit import fit_relative, relative_errors
from policy.latency_source import Reach
from policy.model_files import preset
from policy.model_shape import ModelShape
from policy.splitwise_rows import Row, all_rows, bad_rows, good_rows, named
from policy.step_times import StepTimes
from policy.table import Floats

MODELS = {"bloom-176b": "bloom-176b", "llama-2-70b": "llama2-70b"}
HARDWARE = ("a100-80gb", "h100-80gb", "h100-80gb-pcap")
"""pcap: GPUs capped to half their power. Its rows are the H100's with prefill times 1.3."""
MIXED_FACTOR = 1.1
"""Published: a step of prompts and answers takes so many times a prefill step of its tokens."""
GPU_BYTES = 80 * 1024**3
WEIGHT_BYTES = {"bloom-176b": 329e9, "llama-2-70b": 135e9}
"""As the published simulator has them; the counts of `policy.model_shape` are 7 % and 2 % more."""
REMEDY = "measure it with `baton profile`, or compute it with the roofline model"


class Curves(NamedTuple):
    """What the published simulator interpolates in: medians over prompt tokens of the batch."""

    prefill: Curve
    decode: Curve
    """Looked up with the *number of active answers*: see `lookup_times`."""


def curves(rows: Sequence[Row]) -> Curves:
    """Medians by prompt_size · batch_size."""
    tokens = np.array([row.step_tokens for row in rows])
    knots = np.unique(tokens)
    columns = (np.array([getattr(row, name) for row in rows]) for name in ("prefill_s", "decode_s"))
    medians = ([float(np.median(column[tokens == knot])) for knot in knots] for column in columns)
    return Curves(*(Curve(knots.astype(np.float64), np.array(seconds)) for seconds in medians))


def curve_at(curve: Curve, at: Floats) -> Floats:
    """Linear between knots; the first and the last slope go on beyond them."""
    knots, seconds = curve
    left = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    slopes = np.diff(seconds) / np.diff(knots)
    value: Floats = seconds[left] + slopes[left] * (at - knots[left])
    return value


def lookup_times(rows: Sequence[Row], max_batch: int = MAX_BATCH) -> StepTimes:
    """As published. Its decode time of B answers is what was measured for a batch of B *prompt
    tokens*: far too little (BLOOM-176B on A100: 64 answers of 512 tokens in 48 ms; measured 97).
    """
    found = curves(rows)
    return _step_times(
        found.prefill,
        decode=(curve_at(found.decode, batches(max_batch)), 0.0),
        mixed_factor=MIXED_FACTOR,
        shared_s=0.0,
    )


def decode_fit(rows: Sequence[Row]) -> Floats:
    """Seconds [base, per answer, per context token], DistServe's form: none is negative."""
    seconds = np.array([row.decode_s for row in rows])
    return fit_relative(_decode_features(rows), seconds)


def _decode_features(rows: Sequence[Row]) -> Floats:
    return np.array([(1.0, row.batch, row.mean_context_tokens) for row in rows])


def fit_times(rows: Sequence[Row], max_batch: int = MAX_BATCH) -> StepTimes:
    """Prefill from the medians as published, decode a + b · batch + c · context fitted to the rows.

    Prefill is not fitted: beyond 2,048 tokens of a step its throughput falls, whether they are of
    one prompt or of many, which a + b · tokens + c · pairs misses by 5 to 16 %.
    """
    prefill = curves(rows).prefill
    step_s, per_answer_s, per_context_s = (float(weight) for weight in decode_fit(rows))
    least_s = float(curve_at(prefill, np.ones(1))[0])
    return _step_times(
        prefill,
        decode=(step_s + per_answer_s * batches(max_batch), per_context_s),
        mixed_factor=0.0,
        # The weights are read once: what a step of either kind costs however little it holds.
        shared_s=min(least_s, step_s),
    )


def _step_times(
    prefill: Curve,
    *,
    decode: tuple[Floats, float],
    mixed_factor: float,
    shared_s: float,
) -> StepTimes:
    base_s, per_context_s = decode
    table = decode_table([0], base_s, per_context_s)
    return StepTimes(
        prefill_tokens=prefill.tokens,
        prefill_s=prefill.seconds,
        per_pair_s=0.0,
        num_stages=1,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
        decode_starts=table.starts,
        decode_base_ps=table.base_ps,
        decode_slope_ps=table.slope_ps,
        shared_s=shared_s,
        mixed_factor=mixed_factor,
    )


FORMS: Mapping[str, Callable[[Sequence[Row], int], StepTimes]] = {
    "fit": fit_times,
    "lookup": lookup_times,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitwise:
    """One model on one of its machines; a `LatencySource`."""

    model: str
    """One of MODELS."""
    hardware: str
    """One of HARDWARE."""
    form: str = "fit"
    """One of FORMS: `lookup` only to reproduce published figures."""
    max_batch: int = MAX_BATCH

    def __post_init__(self) -> None:
        for name, value, known in (
            ("model", self.model, tuple(MODELS)),
            ("hardware", self.hardware, HARDWARE),
            ("form", self.form, tuple(FORMS)),
        ):
            if value not in known:
                raise NoProfile(f"{name} {value} from Splitwise", known, REMEDY)

    @property
    def name(self) -> str:
        """Model, hardware and form."""
        return f"{self.model} on {self.hardware}, {self.form} of Splitwise's published table"

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
        """16 bits. The published simulator counts Llama-2-70B's eight KV heads as 64."""
        return self.shape.kv_bytes_per_token

    @property
    def max_context_tokens(self) -> int:
        """Of what was measured: positions of the models themselves end earlier."""
        return max(row.num_prompt_tokens + row.num_output_tokens for row in self._rows())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of these figures."""
        dropped = named(bad_rows(all_rows()))
        known = ["dropped, a larger batch cannot be read faster: " + text for text in dropped]
        if self.form == "lookup":
            known.append("decode time ignores the context, as published: pools come out too small")
        if self.hardware.endswith("pcap"):
            known.append("power-capped figures are the H100's with prefill times 1.3, as published")
        return (*known, "pipeline parallelism was not measured")

    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Tensor parallelism alone."""
        found = {row.tp for row in self._rows()}
        return tuple(ParallelLayout(tp=tp) for tp in sorted(found))

    def times(self, layout: ParallelLayout) -> StepTimes:
        """Raises NoProfile."""
        return FORMS[self.form](self._rows_of(layout), self.max_batch)

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        """As the published simulator has it: all memory but the weights. Raises NoProfile."""
        self._rows_of(layout)
        free_bytes = layout.num_workers * GPU_BYTES - WEIGHT_BYTES[self.model]
        return int(free_bytes // self.kv_bytes_per_token)

    def reach(self, layout: ParallelLayout) -> Reach:
        """The largest of each; the longest context was measured with one answer."""
        rows = self._rows_of(layout)
        return Reach(
            prompt_tokens=max(row.num_prompt_tokens for row in rows),
            step_tokens=max(row.step_tokens for row in rows),
            batch=max(row.batch for row in rows),
            context_tokens=max(int(row.mean_context_tokens) for row in rows),
        )

    def power_share(self, layout: ParallelLayout) -> float | None:
        """Mean power of a run as a share of thermal design power; None: missing in the table."""
        known = [row.average_power for row in self._rows_of(layout) if row.average_power]
        return float(np.mean(known)) if known else None

    def _rows(self) -> list[Row]:
        key = (MODELS[self.model], self.hardware)
        return [row for row in good_rows(all_rows()) if (row.model, row.hardware) == key]

    def _rows_of(self, layout: ParallelLayout) -> list[Row]:
        rows = self._rows()
        found = [row for row in rows if layout == ParallelLayout(tp=row.tp)]
        if not found:
            there_is = tuple(str(ParallelLayout(tp=tp)) for tp in sorted({r.tp for r in rows}))
            raise NoProfile(f"{self.model} on {self.hardware} as {layout}", there_is, REMEDY)
        return found


def lookup_mape(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Mean absolute error of the look-up, prefill and decode alike, as a share of the measured."""
    return _mape(train, test, _lookup_errors)


def fit_mape(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Of the fit; see `lookup_mape`."""
    return _mape(train, test, _fit_errors)


def _lookup_errors(train: Sequence[Row], test: Sequence[Row]) -> Floats:
    found, tokens = curves(train), np.array([row.step_tokens for row in test], dtype=np.float64)
    predicted = curve_at(found.prefill, tokens), curve_at(found.decode, tokens)
    return _errors(predicted, test)


def _fit_errors(train: Sequence[Row], test: Sequence[Row]) -> Floats:
    tokens = np.array([row.step_tokens for row in test], dtype=np.float64)
    prefill_s = curve_at(curves(train).prefill, tokens)
    return _errors((prefill_s, _decode_features(test) @ decode_fit(train)), test)


def _errors(predicted: tuple[Floats, Floats], test: Sequence[Row]) -> Floats:
    measured = np.array([(row.prefill_s, row.decode_s) for row in test])
    return relative_errors(np.stack(predicted, axis=1), measured)


def _mape(
    train: Sequence[Row],
    test: Sequence[Row],
    errors: Callable[[Sequence[Row], Sequence[Row]], Floats],
) -> float:
    keys = {row.key for row in test}
    parts = [
        errors([row for row in train if row.key == key], [row for row in test if row.key == key])
        for key in keys
    ]
    return float(np.concatenate(parts).mean())
