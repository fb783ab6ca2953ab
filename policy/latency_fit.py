"""Fits the latency model to measured steps, and finds the token count that saturates prefill."""

from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SATURATED = 0.95
"""Of the best measured throughput: from here on more tokens per step buy almost nothing."""
FIRST_CONTEXT_KNOT = 2048.0
"""Tokens; further knots are at this and one and a half times this, doubled again and again."""
MIN_POINTS_PER_SEGMENT = 2
"""A knot with less to hold it would follow the noise."""
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Table:
    """Piecewise linear: knots and the seconds at each."""

    knots: Floats
    seconds: Floats


def fit_prefill(num_tokens: Floats, num_context_pairs: Floats, seconds: Floats) -> Floats:
    """[base, per token, per pair], none negative: least squares on the relative error."""
    features = np.stack([np.ones_like(seconds), num_tokens, num_context_pairs], axis=1)
    return fit_relative(features, seconds)


def fit_decode(batch: Floats, num_context_tokens: Floats, seconds: Floats) -> tuple[Table, Table]:
    """Tables over the batch and over the context; neither falls."""
    batches, contexts = np.unique(batch), context_knots(num_context_tokens)
    features = [np.ones((len(seconds), 1)), ramps(batch, batches)]
    features.append(ramps(num_context_tokens, contexts))
    rises = fit_relative(np.concatenate(features, axis=1), seconds)
    num_batches = len(batches)
    return (
        Table(batches, np.cumsum(rises[:num_batches])),
        Table(contexts, np.concatenate([[0.0], np.cumsum(rises[num_batches:])])),
    )


def context_knots(num_context_tokens: Floats) -> Floats:
    """0, then rising to the most measured, each with enough points between it and the last."""
    most = float(num_context_tokens.max())
    knots, next_knot, factors = [0.0], FIRST_CONTEXT_KNOT, cycle((3 / 2, 4 / 3))
    while next_knot < most:
        inside = (num_context_tokens > knots[-1]) & (num_context_tokens <= next_knot)
        beyond = num_context_tokens > next_knot
        if min(inside.sum(), beyond.sum()) >= MIN_POINTS_PER_SEGMENT:
            knots.append(next_knot)
        next_knot = round(next_knot * next(factors))
    return np.array([*knots, most])


def ramps(at: Floats, knots: Floats) -> Floats:
    """One column per segment: 0 before it, 1 after it. Rises weigh them to a rising table."""
    columns = [np.clip((at - a) / (b - a), 0.0, 1.0) for a, b in pairwise(knots)]
    return np.stack(columns, axis=1) if columns else np.empty((len(at), 0))


def fit_relative(features: Floats, seconds: Floats) -> Floats:
    """Weights ≥ 0 that minimise Σ (predicted / measured − 1)².

    As DistServe fits: a step of 50 ms counts as much as one of 5 s.
    """
    scaled = features / seconds[:, None]
    # Columns of like size: tokens and pairs differ by orders of magnitude.
    sizes = np.maximum(np.abs(scaled).max(axis=0), TINY)
    weights: Floats = nonnegative_least_squares(scaled / sizes, np.ones(len(seconds))) / sizes
    return weights


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """x ≥ 0 with the least |matrix · x − target|: Lawson and Hanson (1974), chapter 23."""
    num_weights = matrix.shape[1]
    weights, free = np.zeros(num_weights), np.zeros(num_weights, dtype=np.bool_)
    # Each turn lowers the error, so no set comes twice; three per weight is their own bound.
    for _ in range(3 * num_weights):
        gain = matrix.T @ (target - matrix @ weights)
        able = ~free & (gain > 1e-10)
        if not able.any():
            break
        free[int(np.argmax(np.where(able, gain, -np.inf)))] = True
        weights = _settle(matrix, target, weights, free)
    return weights


def _settle(matrix: Floats, target: Floats, weights: Floats, free: Bools) -> Floats:
    """The best weights of the free columns; those that would turn negative leave `free`."""
    while free.any():
        trial = np.zeros(len(weights))
        trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        negative = free & (trial <= 0)
        if not negative.any():
            return trial
        # Go as far as the first weight that reaches 0, and bind that one.
        gaps = np.full(len(weights), np.inf)
        gaps[negative] = weights[negative] / np.maximum(weights - trial, TINY)[negative]
        first = int(np.argmin(gaps))
        weights = weights + gaps[first] * (trial - weights)
        weights[first] = 0.0
        free[first] = False
    return np.zeros(len(weights))


def find_l_m(num_tokens: Floats, seconds: Floats) -> int:
    """L_m: the fewest prompt tokens per step that reach 95 % of the best measured throughput.

    DistServe batches short prompts up to the total length that saturates the device and computes
    longer ones alone. Of several steps of one length the quickest counts: it holds several short
    prompts, and what attention costs a long one is no matter of saturation. Between two measured
    lengths throughput is taken to be linear.
    """
    lengths = np.unique(num_tokens)
    rates = np.array([(length / seconds[num_tokens == length]).max() for length in lengths])
    wanted = SATURATED * rates.max()
    first = int(np.argmax(rates >= wanted))
    if first == 0:
        return int(lengths[0])
    rise = (wanted - rates[first - 1]) / (rates[first] - rates[first - 1])
    return int(np.ceil(lengths[first - 1] + rise * (lengths[first] - lengths[first - 1])))


def relative_errors(predicted: Floats, measured: Floats) -> Floats:
    """|predicted / measured − 1|."""
    return np.abs(predicted / measured - 1.0)
