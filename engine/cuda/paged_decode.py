"""Attention of one new token per request, straight from paged KV.

Flash decoding: the tokens of a request are cut into splits that attend on their own, so that one
long request fills the device too; a second kernel joins what they found.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from engine.cuda.jit import LOG2_E, kernel, padded, product_dtype
from engine.step_plan import PagedTable

TILE_BYTES = 16 * 1024
"""Of K, and as many of V: three stages of both leave room for two programs in 228 KB."""
MAX_TILE, MIN_TILE = 64, 16
"""Tokens. Less than a tile is not worth a program; a matrix product takes no fewer than 16."""
PROGRAMS_PER_PROCESSOR = 2
"""As many as shared memory holds; not yet measured."""
MAX_SPLITS = 64
"""A device full of programs for one request with 4 KV heads."""
JOINED_SPLITS = tl.constexpr(16)
"""Of which one program holds the sums at a time."""


@dataclass(frozen=True, slots=True)
class PagedDecode:
    """The `PagedKernel` for answers."""

    num_programs: int
    """What fills the device; splits are made until there are as many."""

    def __call__(
        self,
        query: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        table: PagedTable,
        scale: float,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        """See `PagedKernel`. Waits for nothing: the grid depends on shapes and `max_stop` only."""
        num_heads, dim = query.shape[0], query.shape[2]
        num_kv_heads = kv[0].shape[1]
        num_entries = len(table.stops) - table.num_prefills
        tile = tile_tokens(padded(dim) * query.element_size())
        longest = table.max_stop if window is None else min(table.max_stop, window)
        num_splits = split_count(num_entries * num_kv_heads, longest, tile, self.num_programs)
        # One split needs no second kernel, and nothing to keep for it.
        kept = num_entries * num_splits if num_splits > 1 else 0
        sums = query.new_empty((kept, num_heads, dim), dtype=torch.float32)
        stats = query.new_empty((2, kept, num_heads), dtype=torch.float32)
        block = {"HEADS": num_heads, "DIM": dim, "BLOCK_D": padded(dim)}
        group = num_heads // num_kv_heads
        _attend[(num_entries, num_kv_heads, num_splits)](
            *(query, *kv, table.block_ids, table.starts, table.stops, table.rows),
            *(out, sums, stats, table.num_prefills, num_splits, scale * LOG2_E),
            *(query.stride(0), query.stride(1), *kv[0].stride()[:2], *table.block_ids.stride()),
            WINDOW=window or 0,
            GROUP=group,
            BLOCK_G=padded(group),
            BLOCK_SIZE=table.block_size,
            TILE=tile,
            IS_SPLIT=num_splits > 1,
            PRODUCT=product_dtype(query),
            **block,
            num_warps=4,
            num_stages=3 if tile == MAX_TILE else 2,
            enable_fp_fusion=True,
        )
        if num_splits > 1:
            _join[(num_entries, num_heads)](
                *(sums, stats, table.rows, out, table.num_prefills, num_splits),
                **block,
                MAX_SPLITS=MAX_SPLITS,
                enable_fp_fusion=True,
            )


def tile_tokens(row_bytes: int) -> int:
    """Tokens whose K a program loads at once."""
    return max(MIN_TILE, min(MAX_TILE, TILE_BYTES // row_bytes))


def split_count(num_parts: int, longest: int, tile: int, num_programs: int) -> int:
    """Splits of each of `num_parts` (entry, KV head), whose longest sees `longest` tokens."""
    return max(1, min(num_programs // num_parts, -(-longest // tile), MAX_SPLITS))


@kernel("first_entry", "num_splits", "entry_stride", "block_stride")
def _attend(  # noqa: PLR0913, PLR0915  a kernel takes pointers and strides one by one
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_ids: tl.tensor,
    starts: tl.tensor,
    stops: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    stats: tl.tensor,
    first_entry: tl.tensor,
    num_splits: tl.tensor,
    scale: tl.tensor,
    query_head_stride: tl.tensor,
    query_row_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_head_stride: tl.tensor,
    entry_stride: tl.tensor,
    block_stride: tl.tensor,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:
    """One split of one entry, for all query heads that share a KV head."""
    entry = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(starts + first_entry + entry)
    stop = tl.load(stops + first_entry + entry)
    row = tl.load(rows + first_entry + entry).to(tl.int64)
    if WINDOW:
        start = tl.maximum(start, stop - WINDOW)
    split_tokens = tl.cdiv(tl.cdiv(stop - start, TILE), num_splits) * TILE
    first = start + split * split_tokens
    last = tl.minimum(stop, first + split_tokens)

    group = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + group
    is_query = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    query_at = heads[:, None] * query_head_stride + row * query_row_stride + dims[None, :]
    q = tl.load(query + query_at, mask=is_query, other=0.0).to(PRODUCT)
    table = block_ids + (first_entry + entry).to(tl.int64) * entry_stride
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mixed = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for position in range(first, last, TILE):
        tokens = position + tl.arange(0, TILE)
        seen = tokens < last
        # Loads are masked, not scores: what lies in slots of others never gets near, NaN included.
        blocks = tl.load(table + (tokens // BLOCK_SIZE) * block_stride, mask=seen, other=0)
        slots = blocks.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
        at = slots * slot_stride + kv_head * kv_head_stride
        k = tl.load(
            keys + at[None, :] + dims[:, None],
            mask=seen[None, :] & (dims < DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k.to(PRODUCT), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        v = tl.load(
            values + at[:, None] + dims[None, :],
            mask=seen[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(v.dtype).to(PRODUCT)
        mixed = tl.dot(weights, v.to(PRODUCT), mixed * shrink[:, None], input_precision="ieee")
        best = new_best

    if IS_SPLIT:
        line = (entry.to(tl.int64) * num_splits + split) * HEADS + heads
        num_lines = tl.num_programs(0).to(tl.int64) * num_splits * HEADS
        tl.store(stats + line, best, mask=group < GROUP)
        tl.store(stats + num_lines + line, total, mask=group < GROUP)
        # An empty split says so by its statistics alone.
        if first < last:
            tl.store(sums + line[:, None] * DIM + dims[None, :], mixed, mask=is_query)
    else:
        line = row * HEADS + heads
        answer = mixed / total[:, None]
        tl.store(
            out + line[:, None] * DIM + dims[None, :],
            answer.to(out.dtype.element_ty),
            mask=is_query,
        )


@kernel("first_entry", "num_splits")
def _join(  # noqa: PLR0913
    sums: tl.tensor,
    stats: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    first_entry: tl.tensor,
    num_splits: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """All splits of one entry and query head into one answer."""
    entry = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    first_line = entry * num_splits * HEADS + head
    every = tl.arange(0, MAX_SPLITS)
    all_best = tl.load(
        stats + first_line + every * HEADS, mask=every < num_splits, other=float("-inf")
    )
    # Never -inf: the first split has at least one token.
    best = tl.max(all_best, 0)
    num_lines = tl.num_programs(0).to(tl.int64) * num_splits * HEADS
    total = tl.zeros([JOINED_SPLITS], tl.float32)
    mixed = tl.zeros([BLOCK_D], tl.float32)
    for first_split in range(0, num_splits, JOINED_SPLITS):
        splits = first_split + tl.arange(0, JOINED_SPLITS)
        line = first_line + splits * HEADS
        split_total = tl.load(stats + num_lines + line, mask=splits < num_splits, other=0.0)
        split_best = tl.load(stats + line, mask=splits < num_splits, other=float("-inf"))
        weights = tl.exp2(split_best - best)
        split_mixed = tl.load(
            sums + line[:, None] * DIM + dims[None, :],
            # What an empty split did not write is whatever memory held.
            mask=(split_total > 0)[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        total += split_total * weights
        mixed += tl.sum(split_mixed * weights[:, None], 0)
    answer = mixed / tl.sum(total, 0)
    row = tl.load(rows + first_entry + entry).to(tl.int64)
    tl.store(
        out + (row * HEADS + head) * DIM + dims,
        answer.to(out.dtype.element_ty),
        mask=dims < DIM,
    )
