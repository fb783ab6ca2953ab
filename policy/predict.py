"""What a request would meet on each instance: waiting, computing, steps, moving KV; in seconds.

All over columns, all from what the instances report and the latency model, each scaled by what
was observed there.
"""

import numpy as np

from policy.latency import LatencyModel, decode_s
from policy.table import Ask, Floats, Links, Table

STEP_TOKENS = 512
"""Prompt tokens per step where answers are decoded between chunks: as instances do unless told."""
TYPICAL_ANSWER_TOKENS = 64
"""For weighing each step of an answer against what is paid once: how long answers are is not
known; medians of public chat traces are 40 to 130 (`reference/lengths`)."""


def prefill_wait_s(model: LatencyModel, table: Table) -> Floats:
    """Until all prompts that each instance has accepted are computed.

    Of n prompts with p tokens to go the pairs are those of n equal ones: p²/2n.
    """
    pending = table.num_pending_prompt_tokens
    base_s, per_token_s, per_pair_s = model.prefill[0], model.prefill[1], model.prefill[2]
    waiting = np.maximum(table.num_prefilling, pending > 0)
    pairs = 0.5 * pending * pending / np.maximum(waiting, 1)
    alone: Floats = base_s * waiting + per_token_s * pending + per_pair_s * pairs
    return table.prefill_scale * alone


def prefill_compute_s(model: LatencyModel, table: Table, ask: Ask) -> Floats:
    """Of the tokens that each instance does not cache; at least one is computed."""
    hits = np.minimum(ask.hit_tokens, ask.num_input_tokens - 1)
    fresh = ask.num_input_tokens - hits
    base_s, per_token_s, per_pair_s = model.prefill[0], model.prefill[1], model.prefill[2]
    pairs = fresh * hits + 0.5 * fresh * (fresh + 1)
    alone: Floats = base_s + per_token_s * fresh + per_pair_s * pairs
    return table.prefill_scale * alone


def between_steps_s(model: LatencyModel, table: Table, ask: Ask) -> Floats:
    """Of answers that are decoded between the chunks that come before the first token."""
    tokens = table.num_pending_prompt_tokens + ask.num_input_tokens - ask.hit_tokens
    num_steps = 1.0 + np.floor(np.maximum(tokens, 0) / STEP_TOKENS)
    step = decode_s(model, np.maximum(table.num_decoding, 1), table.num_context_tokens)
    between: Floats = (table.num_decoding > 0) * num_steps * table.decode_scale * step
    return between


def ttft_s(model: LatencyModel, table: Table, ask: Ask) -> Floats:
    """From now to the first token."""
    wait_s = prefill_wait_s(model, table)
    compute_s = prefill_compute_s(model, table, ask)
    total: Floats = wait_s + compute_s + between_steps_s(model, table, ask)
    return total


def step_after_s(model: LatencyModel, table: Table, ask: Ask) -> Floats:
    """The decode step once this request and all that are on their way have joined."""
    batch = table.num_decoding + table.num_incoming + 1
    # Whoever is on the way is taken to be like those that run, and like this one.
    mean = (table.num_context_tokens + ask.num_input_tokens) / (table.num_decoding + 1)
    step: Floats = table.decode_scale * decode_s(model, batch, mean * batch)
    return step


def room_wait_s(table: Table, ask: Ask, step_s: Floats) -> Floats:
    """For blocks that running answers hold: about one answer's time while there are too few."""
    wanted_tokens = ask.num_input_tokens * (table.num_incoming + 1)
    lacks = table.num_free_blocks * table.block_size < wanted_tokens
    wait: Floats = lacks * step_s * TYPICAL_ANSWER_TOKENS
    return wait


def transfer_s(links: Links, table: Table, ask: Ask) -> Floats:
    """Of the KV that each instance does not cache; nothing where it is computed."""
    if ask.source < 0:
        return np.zeros(len(table.role))
    tokens = np.maximum(ask.num_input_tokens - ask.hit_tokens, 0)
    is_near = table.host == table.host[ask.source]
    per_token_s = np.where(is_near, links.same_host_s_per_token, links.other_host_s_per_token)
    moved: Floats = links.handoff_s + tokens * per_token_s
    moved[ask.source] = 0.0
    return moved
