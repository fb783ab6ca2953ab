"""Attention of one new token per answer, reading K and V in the blocks where they lie."""

import numpy as np
import torch

from engine.cpu.jit import Floats, Ints, exp, kernel
from engine.step_plan import PagedTable

NO_WINDOW = 0


def paged_decode(
    query: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    table: PagedTable,
    scale: float,
    window: int | None,
    out: torch.Tensor,
) -> None:
    """The answers of a step: `engine.attention.PagedKernel` for float32 on a CPU."""
    first = table.num_prefills
    num_rows = len(table.block_ids) - first
    row = query.shape[1] - num_rows
    decode_rows(
        query[:, row:].transpose(0, 1).contiguous().numpy(),
        (kv[0].numpy(), kv[1].numpy()),
        (
            table.block_ids[first:].numpy(),
            table.starts[first:].numpy(),
            table.stops[first:].numpy(),
        ),
        (table.block_size, window or NO_WINDOW),
        scale,
        out[row:].numpy(),
    )


@kernel
def decode_rows(
    query: Floats,
    kv: tuple[Floats, Floats],
    table: tuple[Ints, Ints, Ints],
    sizes: tuple[int, int],
    scale: float,
    out: Floats,
) -> None:
    """Entry e attends to its tokens from `max(starts[e], stops[e] - window)` up to `stops[e]`.

    `query` and `out` are [entry, query head, dim], `kv` [slot, KV head, dim] each, `table` is
    (block_ids [entry, block], starts, stops), `sizes` (block size, window or 0).
    """
    num_entries, num_heads, dim = query.shape
    num_kv_heads = kv[0].shape[1]
    num_shared = num_heads // num_kv_heads
    _, starts, stops = table
    block_size, window = sizes
    scaled = np.empty((num_shared, dim), np.float32)
    slots = np.empty(max(stops.max() - starts.min(), 1), np.int64)
    scores = np.empty((num_shared, slots.size), np.float32)
    for entry in range(num_entries):
        first = starts[entry]
        if window:
            first = max(first, stops[entry] - window)
        num_tokens = stops[entry] - first
        for token in range(num_tokens):
            position = first + token
            block = table[0][entry, position // block_size]
            slots[token] = np.int64(block) * block_size + position % block_size
        for kv_head in range(num_kv_heads):
            heads = query[entry, kv_head * num_shared : (kv_head + 1) * num_shared]
            mixed = out[entry, kv_head * num_shared : (kv_head + 1) * num_shared]
            for head in range(num_shared):
                for i in range(dim):
                    scaled[head, i] = heads[head, i] * np.float32(scale)
            _scores(scaled, kv[0], kv_head, slots[:num_tokens], scores)
            _mix(scores, kv[1], kv_head, slots[:num_tokens], mixed)


@kernel
def _scores(query: Floats, keys: Floats, kv_head: int, slots: Ints, scores: Floats) -> None:
    """Products [head, token] of the query heads that share a KV head with its keys."""
    num_heads, dim = query.shape
    for token in range(slots.size):
        key = keys[slots[token], kv_head]
        for head in range(num_heads):
            score = np.float32(0)
            for i in range(dim):
                score += query[head, i] * key[i]
            scores[head, token] = score


@kernel
def _mix(scores: Floats, values: Floats, kv_head: int, slots: Ints, out: Floats) -> None:
    """Values [head, dim] weighted by the softmax of the scores, four tokens at a time."""
    num_heads, dim = out.shape
    num_tokens = slots.size
    num_fours = num_tokens - num_tokens % 4
    for head in range(num_heads):
        _softmax(scores[head, :num_tokens])
        out[head, :] = np.float32(0)
    for token in range(0, num_fours, 4):
        a, b = values[slots[token], kv_head], values[slots[token + 1], kv_head]
        c, d = values[slots[token + 2], kv_head], values[slots[token + 3], kv_head]
        for head in range(num_heads):
            wa, wb = scores[head, token], scores[head, token + 1]
            wc, wd = scores[head, token + 2], scores[head, token + 3]
            for i in range(dim):
                out[head, i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i]
    for token in range(num_fours, num_tokens):
        value = values[slots[token], kv_head]
        for head in range(num_heads):
            for i in range(dim):
                out[head, i] += scores[head, token] * value[i]


@kernel
def _softmax(line: Floats) -> None:
    """In place."""
    highest = line[0]
    for token in range(line.size):
        highest = max(highest, line[token])
    total = np.float32(0)
    for token in range(line.size):
        line[token] = exp(line[token] - highest)
        total += line[token]
    for token in range(line.size):
        line[token] /= total
