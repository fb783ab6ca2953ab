"""From the times of some rounds to what profile.json says: points, fits, intervals, L_m."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from core.profile import (
    Condition,
    CopyRate,
    DecodeFit,
    FitError,
    Point,
    PrefillFit,
    Saturation,
    StepShape,
)
from deploy.profile_journal import Round
from policy.latency import Floats, LatencyModel, decode_s, model_of, prefill_s
from policy.latency_fit import find_l_m, fit_decode, fit_prefill, relative_errors

SAFETY = 2.0
"""The halves of one run lie minutes apart, two runs perhaps hours."""
MIN_INTERVAL = 0.02
"""Less than this no shared machine can promise."""
PROMISED_SHARE = 0.9
"""Of the points, within the interval."""


def typical_s(times_s: Sequence[float]) -> float:
    """The lower quartile over rounds (with three or four rounds the least).

    What others do on the machine only ever adds time, so low ranks repeat better than the median:
    on two cores shared with other work, halves of four rounds differed by 3 % (the least) against
    12 % (the median) in the middle. The very least of many would be a lucky one.
    """
    return sorted(times_s)[(len(times_s) - 1) // 4]


def condition_of(
    name: str, rounds: Sequence[Round], held_out: frozenset[StepShape], kv_bytes_per_token: int
) -> Condition:
    """Everything there is to say of one condition's rounds."""
    points = tuple(_points(rounds, held_out))
    prefill, decode = fit(points)
    errors = held_out_errors(model_of(prefill, decode, points), points)
    return Condition(
        name=name,
        num_rounds=len(rounds),
        points=points,
        copies=tuple(_copy_rates(rounds, kv_bytes_per_token)),
        prefill=prefill,
        decode=decode,
        prefill_error=_fit_error(errors["prefill"]),
        decode_error=_fit_error(errors["decode"]),
        error=_fit_error(np.concatenate(list(errors.values()))),
        interval=interval_of(rounds),
    )


def fit(points: Sequence[Point]) -> tuple[PrefillFit, DecodeFit]:
    """Both models, from the points that are not held out."""
    prompts = [p for p in points if p.shape.kind == "prefill" and not p.held_out]
    answers = [p for p in points if p.shape.kind == "decode" and not p.held_out]
    base_s, per_token_s, per_pair_s = fit_prefill(
        _column(p.shape.num_step_tokens for p in prompts),
        _column(p.shape.num_context_pairs for p in prompts),
        _column(p.time_s for p in prompts),
    ).tolist()
    batch, context = fit_decode(
        _column(p.shape.batch for p in answers),
        _column(p.shape.num_context_tokens for p in answers),
        _column(p.time_s for p in answers),
    )
    decode = DecodeFit(
        batches=tuple(int(knot) for knot in batch.knots),
        batch_s=tuple(batch.seconds.tolist()),
        num_context_tokens=tuple(int(knot) for knot in context.knots),
        context_s=tuple(context.seconds.tolist()),
    )
    return PrefillFit(base_s=base_s, per_token_s=per_token_s, per_pair_s=per_pair_s), decode


def interval_of(rounds: Sequence[Round]) -> float:
    """What two runs may differ by, as a share: twice the 90th percentile of what two halves of the
    rounds differ by, over all points and all ways to halve the rounds."""
    differences = [
        _relative(typical_s(half_s), typical_s(other_s))
        for times_s in _by_shape(rounds).values()
        for half_s, other_s in _halves(times_s)
    ]
    return max(MIN_INTERVAL, SAFETY * float(np.quantile(differences, PROMISED_SHARE)))


def saturation_of(rounds: Sequence[Round]) -> Saturation:
    """L_m of the typical times; its range is that of the single rounds."""
    times_s = _by_shape(rounds)
    l_m = _l_m({shape: typical_s(times) for shape, times in times_s.items()})
    each = [_l_m(dict(done.times_s)) for done in rounds]
    return Saturation(l_m_tokens=l_m, low_tokens=min(l_m, *each), high_tokens=max(l_m, *each))


def _l_m(times_s: dict[StepShape, float]) -> int:
    whole = [s for s in times_s if s.kind == "prefill" and s.num_cached_tokens == 0]
    return find_l_m(
        _column(shape.num_step_tokens for shape in whole), _column(times_s[s] for s in whole)
    )


def held_out_errors(model: LatencyModel, points: Sequence[Point]) -> Mapping[str, Floats]:
    """Kind → relative errors where the model was not fitted."""
    predict = {"prefill": _predicted_prefill_s, "decode": _predicted_decode_s}
    errors = {}
    for kind, predicted_s in predict.items():
        held_out = [p for p in points if p.shape.kind == kind and p.held_out]
        measured_s = _column(p.time_s for p in held_out)
        errors[kind] = relative_errors(
            _column(predicted_s(model, p.shape) for p in held_out), measured_s
        )
    return errors


def _predicted_prefill_s(model: LatencyModel, shape: StepShape) -> float:
    return float(prefill_s(model, shape.num_step_tokens, shape.num_context_pairs))


def _predicted_decode_s(model: LatencyModel, shape: StepShape) -> float:
    return float(decode_s(model, shape.batch, shape.num_context_tokens))


def _fit_error(errors: Floats) -> FitError:
    return FitError(
        num_points=len(errors), median=float(np.median(errors)), max=float(errors.max())
    )


def _points(rounds: Sequence[Round], held_out: frozenset[StepShape]) -> Iterator[Point]:
    for shape, times_s in _by_shape(rounds).items():
        yield Point(
            shape=shape,
            held_out=shape in held_out,
            time_s=typical_s(times_s),
            low_s=min(times_s),
            high_s=max(times_s),
        )


def _copy_rates(rounds: Sequence[Round], kv_bytes_per_token: int) -> Iterator[CopyRate]:
    for num_tokens in rounds[0].copies_s:
        num_bytes = num_tokens * kv_bytes_per_token
        for i, kind in enumerate(("gather", "scatter")):
            times_s = [done.copies_s[num_tokens][i] for done in rounds]
            yield CopyRate(
                kind=kind,
                num_bytes=num_bytes,
                bytes_per_s=num_bytes / typical_s(times_s),
                low_bytes_per_s=num_bytes / max(times_s),
                high_bytes_per_s=num_bytes / min(times_s),
            )


def _by_shape(rounds: Sequence[Round]) -> dict[StepShape, list[float]]:
    """One time per round; the shapes in the order of their sizes."""
    shapes = sorted(
        rounds[0].times_s, key=lambda s: (s.kind, s.num_step_tokens, s.num_context_pairs)
    )
    return {shape: [done.times_s[shape] for done in rounds] for shape in shapes}


def _halves(times_s: Sequence[float]) -> Iterator[tuple[list[float], list[float]]]:
    everyone = range(len(times_s))
    for chosen in combinations(everyone, len(times_s) // 2):
        rest = [times_s[i] for i in everyone if i not in chosen]
        yield [times_s[i] for i in chosen], rest


def _relative(first_s: float, second_s: float) -> float:
    """As `core.profile_compare` does."""
    return abs(first_s - second_s) / ((first_s + second_s) / 2)


def _column(values: Iterable[float]) -> Floats:
    return np.array(list(values), dtype=np.float64)
