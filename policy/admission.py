"""Whether a request is worth beginning, and how many can run at once: from predictions alone."""

from typing import NamedTuple

import numpy as np

from policy.latency import LatencyModel, decode_s
from policy.mixed_pool import takes
from policy.predict import prefill_compute_s, ttft_s
from policy.table import Ask, Bools, Phase, Table

SLO_SHARE = 0.9
"""Of the TTFT target that a forecast may use up: forecasts err."""
MAX_BATCH_BITS = 10
"""Batches below 1,024 are looked at."""
TYPICAL_CONTEXT_TOKENS = 256
"""Of an answer, where none runs that could tell."""
MIN_RETRY_S = 0.5
MAX_RETRY_S = 30.0


class Forecast(NamedTuple):
    """The first token, in the best place."""

    ttft_s: float
    """Infinite when there is none."""
    alone_s: float
    """If nobody else were there."""


class Refusal(NamedTuple):
    """Why a request is better not begun."""

    by_load: bool
    """False: it could not be met by an idle cluster either."""
    predicted_s: float
    allowed_s: float
    retry_after_s: float


def forecast(model: LatencyModel, table: Table, able: Bools, ask: Ask) -> Forecast:
    """Over those that serve prefill."""
    serving = able & takes(table, Phase.PREFILL)
    chosen = serving if serving.any() else able
    if not chosen.any():
        return Forecast(np.inf, np.inf)
    soonest = np.min(np.where(chosen, ttft_s(model, table, ask), np.inf))
    alone = np.min(np.where(chosen, prefill_compute_s(model, table, ask), np.inf))
    return Forecast(float(soonest), float(alone))


def refusal(seen: Forecast, line_wait_s: float, left_s: float, target_s: float) -> Refusal | None:
    """None when the first token is expected in time: before the deadline, within the target.

    `target_s` 0 is none. Refusing early costs the client nothing but the answer it would not get.
    """
    predicted_s = line_wait_s + seen.ttft_s
    if seen.alone_s > left_s:
        return Refusal(False, seen.alone_s, left_s, 0.0)
    allowed_s = min(left_s, SLO_SHARE * target_s) if target_s else left_s
    # A prompt that alone takes longer than the target is no sign of load.
    allowed_s = max(allowed_s, min(left_s, 2 * seen.alone_s))
    if predicted_s <= allowed_s:
        return None
    return Refusal(True, predicted_s, allowed_s, retry_after_s(predicted_s - allowed_s))


def retry_after_s(excess_s: float) -> float:
    """When the excess has been worked off, if nothing else comes; within bounds."""
    return min(MAX_RETRY_S, max(MIN_RETRY_S, excess_s))


def line_wait_s(num_ahead: int, num_running: int, held_s: float) -> float:
    """For a place, when each of those that run is held for so long on average (Little's law)."""
    return num_ahead * held_s / max(1, num_running)


def num_free_answers(model: LatencyModel, table: Table, able: Bools, target_s: float) -> int:
    """How many more answers can be written while each step stays within the TPOT target.

    Each instance writes at least one. Those on the way to it count as written.
    """
    chosen = able & takes(table, Phase.DECODE)
    mean = TYPICAL_CONTEXT_TOKENS
    if (num_decoding := int(table.num_decoding[chosen].sum())) > 0:
        mean = int(table.num_context_tokens[chosen].sum()) // num_decoding
    most = np.zeros(len(table.role))
    for bit in range(MAX_BATCH_BITS - 1, -1, -1):
        # A step never gets shorter with more answers: the largest batch is found bit by bit.
        batch = most + 2.0**bit
        step_s = table.decode_scale * decode_s(model, batch, mean * batch)
        most = np.where(step_s <= target_s, batch, most)
    free = np.maximum(most, 1) - table.num_decoding - table.num_incoming
    return int(np.sum(np.where(chosen, np.maximum(free, 0), 0)))
