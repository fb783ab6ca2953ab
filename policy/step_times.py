"""How long any step of one instance takes, in whole picoseconds: what the simulator runs on.

Every latency model (`roofline`, `measured`, `published`, `splitwise`) is turned into the same few
tables. Decode's coefficients are rounded once, here, to whole picoseconds: the time of many steps
then has a closed form that equals the sum of the steps to the last digit.
"""

from typing import NamedTuple

import numpy as np

from policy.table import Floats, Ints

PS_PER_S = 1_000_000_000_000


class StepTimes(NamedTuple):
    """Of one layout of one model on one kind of hardware. A tuple: numba knows no dataclasses.

    Prefill: a step of n prompt tokens that attend to p pairs takes
    (curve(n) + per_pair_s · p) / num_stages + stage_s in each pipeline stage, in the first one
    first_s + first_per_token_s · n more. Curve is linear between knots and goes on beyond both
    ends with the slope found there.

    Decode: a step of `batch` answers with c context tokens after it takes, over all stages,
    base_ps[batch, j] + slope_ps[batch, j] · c, j the last segment that starts at or below c.
    """

    prefill_tokens: Floats
    """Knots, rising; at least two."""
    prefill_s: Floats
    """At each knot."""
    per_pair_s: float
    num_stages: int
    stage_s: float
    first_s: float
    first_per_token_s: float
    decode_starts: Ints
    """[batch, segment]: least context tokens of each; the first is 0, unused ones are NEVER."""
    decode_base_ps: Ints
    """[batch, segment]; row 0 is of no batch and holds 0."""
    decode_slope_ps: Ints
    """[batch, segment], per context token."""
    shared_s: float
    """What prompts and answers in one step pay once: reading the weights, launching."""
    mixed_factor: float
    """Above 0: a mixed step takes so many times what a step of as many prompt tokens would."""


NEVER = 2**62
"""Start of a segment that there is none of."""


def max_batch(times: StepTimes) -> int:
    """Most answers in one step that the tables know."""
    num_rows: int = times.decode_base_ps.shape[0]
    return num_rows - 1


def curve_s(times: StepTimes, num_tokens: float) -> float:
    """Seconds of the prompt tokens of a step, without pairs."""
    knots, seconds = times.prefill_tokens, times.prefill_s
    left, right = 0, len(knots) - 1
    while right - left > 1:
        middle = (left + right) // 2
        if knots[middle] <= num_tokens:
            left = middle
        else:
            right = middle
    slope = (seconds[right] - seconds[left]) / (knots[right] - knots[left])
    value: float = seconds[left] + slope * (num_tokens - knots[left])
    return value


def prefill_stage_s(times: StepTimes, num_tokens: float, num_pairs: float, stage: int) -> float:
    """Seconds that a step of prompts stays in one pipeline stage."""
    whole_s = curve_s(times, num_tokens) + times.per_pair_s * num_pairs
    stage_s = whole_s / times.num_stages + times.stage_s
    if stage == 0:
        stage_s += times.first_s + times.first_per_token_s * num_tokens
    return stage_s


def prefill_s(times: StepTimes, num_tokens: float, num_pairs: float) -> float:
    """Seconds of a step of prompts through all stages."""
    first_s = times.first_s + times.first_per_token_s * num_tokens
    whole_s = curve_s(times, num_tokens) + times.per_pair_s * num_pairs
    return whole_s + times.num_stages * times.stage_s + first_s


def segment_of(times: StepTimes, batch: int, num_context_tokens: int) -> int:
    """Of decode's tables."""
    starts = times.decode_starts
    segment = 0
    while segment + 1 < starts.shape[1] and starts[batch, segment + 1] <= num_context_tokens:
        segment += 1
    return segment


def decode_ps(times: StepTimes, batch: int, num_context_tokens: int) -> int:
    """Picoseconds of a step of answers; context as it is after the step."""
    j = segment_of(times, batch, num_context_tokens)
    step_ps: int = (
        times.decode_base_ps[batch, j] + times.decode_slope_ps[batch, j] * num_context_tokens
    )
    return step_ps


def mixed_s(
    times: StepTimes, num_tokens: float, num_pairs: float, batch: int, num_context_tokens: int
) -> float:
    """Seconds of a step that holds prompts and answers."""
    if times.mixed_factor > 0:
        return times.mixed_factor * prefill_s(times, num_tokens + batch, num_pairs)
    answers_s = decode_ps(times, batch, num_context_tokens) / PS_PER_S
    prompts_s = prefill_s(times, num_tokens, num_pairs)
    return prompts_s + answers_s - min(times.shared_s, answers_s, prompts_s)


def whole_ps(seconds: float) -> int:
    """The nearest picosecond, at least one: time has to move on."""
    return max(1, int(np.rint(seconds * PS_PER_S)))
