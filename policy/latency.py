"""How long a step takes: DistServe's latency model with what a CPU adds to it, as pure functions.

Any latency model is a function of the same four numbers: prompt tokens of the step and the pairs
they attend to, answers in the batch and their context. The functions take numbers or columns of
them and use only what numba compiles; a model is a few arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.profile import Condition, DecodeFit, Point, PrefillFit, StepShape

Floats = NDArray[np.float64]
Numbers: TypeAlias = float | NDArray[np.floating[Any]] | NDArray[np.int64]
"""One value or a column of them."""


class LatencyModel(NamedTuple):
    """A fitted model: seconds, tokens and pairs. A tuple, because numba knows no dataclasses."""

    prefill: Floats
    """[base, per token, per pair]."""
    batches: Floats
    """Knots of decode's table over the batch."""
    batch_s: Floats
    contexts: Floats
    """Knots of decode's table over the context tokens of the whole batch."""
    context_s: Floats
    reach: Floats
    """[prompt tokens, pairs, batch, context][least, most]: what it was fitted to."""


def latency_model(condition: Condition) -> LatencyModel:
    """The model that a profile holds for one condition."""
    return model_of(condition.prefill, condition.decode, condition.points)


def model_of(prefill: PrefillFit, decode: DecodeFit, points: Sequence[Point]) -> LatencyModel:
    """The fits as arrays; the points say how far they reach."""
    return LatencyModel(
        prefill=np.array([prefill.base_s, prefill.per_token_s, prefill.per_pair_s]),
        batches=np.array(decode.batches, dtype=np.float64),
        batch_s=np.array(decode.batch_s),
        contexts=np.array(decode.num_context_tokens, dtype=np.float64),
        context_s=np.array(decode.context_s),
        reach=_reach([point.shape for point in points]),
    )


def prefill_s(model: LatencyModel, num_tokens: Numbers, num_context_pairs: Numbers) -> Numbers:
    """Seconds of a step of prompt chunks alone: a + b · tokens + c · pairs.

    DistServe's appendix A as shipped (a + b·Σl + c·Σl²), with the pairs counted exactly, so that
    it holds for chunks with earlier context as well: n tokens after s have n·s + n·(n + 1)/2.
    Valid from one token; measured where `is_extrapolated` is False.
    """
    # Not unpacked: numba cannot tell how many values an array holds.
    base_s, per_token_s, per_pair_s = model.prefill[0], model.prefill[1], model.prefill[2]
    total: Numbers = base_s + per_token_s * num_tokens + per_pair_s * num_context_pairs
    return total


def decode_s(model: LatencyModel, batch: Numbers, num_context_tokens: Numbers) -> Numbers:
    """Seconds of a step of answers alone: f(batch) + g(context tokens of all of them).

    DistServe ships a + b·Σcontext + c·B in two branches of B. Here f and g are piecewise linear
    and never fall: on a CPU the matrix products change kernels with B, and attention slows down
    once its copies of K and V outgrow the caches. Valid from one answer; beyond the last knot
    the last slope goes on.
    """
    of_batch = table_s(model.batches, model.batch_s, batch)
    total: Numbers = of_batch + table_s(model.contexts, model.context_s, num_context_tokens)
    return total


def step_s(
    model: LatencyModel,
    num_tokens: Numbers,
    num_context_pairs: Numbers,
    batch: Numbers,
    num_context_tokens: Numbers,
) -> Numbers:
    """Seconds of any step; 0 for one that holds nothing.

    A mixed step is the sum of both, less what both pay once: the weights are read (and kernels
    launched) one time, which is prefill's base or decode's first knot, whichever is less.
    """
    has_prompts, has_answers = np.greater(num_tokens, 0), np.greater(batch, 0)
    shared = np.minimum(model.prefill[0], model.batch_s[0])
    total: Numbers = (
        has_prompts * prefill_s(model, num_tokens, num_context_pairs)
        + has_answers * decode_s(model, batch, num_context_tokens)
        - (has_prompts & has_answers) * shared
    )
    return total


def is_extrapolated(
    model: LatencyModel,
    num_tokens: float,
    num_context_pairs: float,
    batch: float,
    num_context_tokens: float,
) -> bool:
    """Whether a step lies outside of what was measured; a phase it lacks is not asked about."""
    step = (num_tokens, num_context_pairs, batch, num_context_tokens)
    first, last = (0 if num_tokens > 0 else 2), (4 if batch > 0 else 2)
    for i in range(first, last):  # noqa: SIM110 - numba knows no generators
        if not model.reach[i, 0] <= step[i] <= model.reach[i, 1]:
            return True
    return False


def table_s(knots: Floats, seconds: Floats, at: Numbers) -> Numbers:
    """Linear between knots, the last slope beyond them; the first value before them."""
    if len(knots) == 1:
        only: Numbers = seconds[0] + 0.0 * at
        return only
    # As np.diff, which takes longer than all the rest for tables of a few knots.
    slopes = (seconds[1:] - seconds[:-1]) / (knots[1:] - knots[:-1])
    # Among the inner knots: the first and the last slope go on.
    left = np.searchsorted(knots[1:-1], at, side="right")
    value: Numbers = seconds[left] + slopes[left] * (np.maximum(at, knots[0]) - knots[left])
    return value


def _reach(shapes: Sequence[StepShape]) -> Floats:
    prompts = [s for s in shapes if s.kind == "prefill"]
    answers = [s for s in shapes if s.kind == "decode"]
    columns = (
        [s.num_step_tokens for s in prompts],
        [s.num_context_pairs for s in prompts],
        [s.batch for s in answers],
        [s.num_context_tokens for s in answers],
    )
    return np.array([[min(c, default=0), max(c, default=0)] for c in columns], dtype=np.float64)
