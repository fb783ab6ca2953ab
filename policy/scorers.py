"""What each policy thinks of each instance: a column of scores, the least is best.

slo             least predicted time of this request and of those it delays
jsq             fewest pending tokens (Splitwise, section 4.4)
shortest_queue  fewest waiting requests, then the least loaded decode (DistServe, section 4.3)
prefix_aware    fewest tokens to compute, those of others included
power_of_two    the less loaded of two drawn ones
round_robin     in turn
random          drawn
"""

import numpy as np

from policy.latency import LatencyModel
from policy.predict import (
    TYPICAL_ANSWER_TOKENS,
    between_steps_s,
    prefill_compute_s,
    prefill_wait_s,
    room_wait_s,
    step_after_s,
    transfer_s,
)
from policy.table import DECODE_ROLE, Ask, Floats, Links, Table, Weights

SLO, JSQ, SHORTEST_QUEUE, PREFIX_AWARE, POWER_OF_TWO, ROUND_ROBIN, RANDOM = range(7)
"""Places in `core.config.POLICIES`."""


def prefill_scores(
    policy: int, model: LatencyModel, links: Links, weights: Weights, table: Table, ask: Ask
) -> Floats:
    """For the instance that reads the prompt."""
    if policy == SLO:
        return slo_prefill(model, links, weights, table, ask)
    return prefill_load(policy, table, ask)


def decode_scores(
    policy: int, model: LatencyModel, links: Links, weights: Weights, table: Table, ask: Ask
) -> Floats:
    """For the instance that writes the answer."""
    if policy == SLO:
        return slo_decode(model, links, table, ask)
    return decode_load(policy, table, ask)


def prefill_load(policy: int, table: Table, ask: Ask) -> Floats:
    """What policies other than `slo` look at; of a table of numbers, a number."""
    none = 0.0 * table.prefill_scale
    if policy == SHORTEST_QUEUE:
        return none + table.num_prefilling
    pending = none + table.num_pending_prompt_tokens + table.num_decoding
    if policy == PREFIX_AWARE:
        return pending + ask.num_input_tokens - ask.hit_tokens
    if policy in (JSQ, POWER_OF_TWO):
        return pending
    return none


def decode_load(policy: int, table: Table, ask: Ask) -> Floats:
    """As `prefill_load`."""
    none = 0.0 * table.decode_scale
    if policy == JSQ:
        return none + table.num_context_tokens + table.num_incoming * ask.num_tokens
    load: Floats = table.num_decoding + table.num_incoming + 0.999 * used_share(table)
    if policy == PREFIX_AWARE:
        return load - ask.hit_tokens / max(ask.num_input_tokens, 1)
    if policy in (SHORTEST_QUEUE, POWER_OF_TWO):
        return load
    return none


def slo_prefill(
    model: LatencyModel, links: Links, weights: Weights, table: Table, ask: Ask
) -> Floats:
    """Time to the first token, the work that others wait for, and the answers that stand still.

    One formula for both pools: a decode instance reads a prompt itself exactly when delaying its
    own answers costs less than what the others' queues and the handoff would.
    """
    compute_s = prefill_compute_s(model, table, ask)
    alone_s = prefill_wait_s(model, table) + between_steps_s(model, table, ask) + compute_s
    others_s = compute_s * (weights.work + weights.disturbance * table.num_decoding)
    # Elsewhere than where answers are written, a handoff follows.
    handoff_s = (table.role != DECODE_ROLE) * (
        links.handoff_s + ask.num_input_tokens * links.same_host_s_per_token
    )
    total: Floats = alone_s + others_s + handoff_s
    return total


def slo_decode(model: LatencyModel, links: Links, table: Table, ask: Ask) -> Floats:
    """Time of an answer of typical length, from its KV to its last token."""
    step_s = step_after_s(model, table, ask)
    total: Floats = (
        step_s * TYPICAL_ANSWER_TOKENS
        + room_wait_s(table, ask, step_s)
        + transfer_s(links, table, ask)
        # Of equals the one with more room.
        + 1e-6 * used_share(table)
    )
    return total


def used_share(table: Table) -> Floats:
    """Of its blocks, below 1."""
    share: Floats = 1.0 - table.num_free_blocks / np.maximum(table.num_blocks, 1)
    return share


def pick(scores: Floats, policy: int, turn: int, draw: int) -> int:
    """The row of the least finite score; `turn` counts picks, `draw` is a random number from 0.

    -1 when every score is infinite. Equals take turns: an idle pool must not send everything to
    its first instance.
    """
    least = np.min(scores)
    if not np.isfinite(least):
        return -1
    if policy in (SLO, JSQ, SHORTEST_QUEUE, PREFIX_AWARE):
        best = np.flatnonzero(scores == least)
        return int(best[turn % len(best)])
    rows = np.flatnonzero(np.isfinite(scores))
    if policy == ROUND_ROBIN:
        return int(rows[turn % len(rows)])
    first = draw % len(rows)
    if policy == RANDOM or len(rows) == 1:
        return int(rows[first])
    # Of power_of_two, another one than the first.
    other = (first + 1 + (draw // len(rows)) % (len(rows) - 1)) % len(rows)
    return int(rows[first] if scores[rows[first]] <= scores[rows[other]] else rows[other])
