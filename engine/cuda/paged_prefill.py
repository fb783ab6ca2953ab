"""Causal attention of prompt chunks, straight from paged KV, all chunks of a step in one launch."""

import torch
import triton.language as tl

from engine.cuda.jit import LOG2_E, MIN_DOT, kernel, padded, product_dtype
from engine.step_plan import PagedTable

MAX_ROWS = 128
TILE_BYTES = 16 * 1024
"""Of K, and as many of V."""
MAX_TILE = 64
"""Tokens of KV at a time."""
MIN_ENTRIES = 32
"""Looked through to find a row's chunk; a kernel is compiled for each power of two above."""


def paged_prefill(
    query: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    table: PagedTable,
    scale: float,
    window: int | None,
    out: torch.Tensor,
) -> None:
    """The `PagedKernel` for prompt chunks. Waits for nothing: the grid depends on shapes only."""
    num_heads, num_rows, dim = query.shape
    num_chunks = table.num_prefills
    num_rows -= len(table.stops) - num_chunks
    rows, tile = tile_shape(num_rows, padded(dim), query.element_size())
    # Every chunk begins a tile of its own; where each has full ones, the last programs do nothing.
    num_tiles = num_rows // rows + num_chunks
    _attend[(num_tiles, num_heads)](
        *(query, *kv, table.block_ids, table.starts, table.stops, table.rows, out),
        *(num_chunks, scale * LOG2_E, query.stride(0), query.stride(1)),
        *(*kv[0].stride()[:2], *table.block_ids.stride()),
        WINDOW=window or 0,
        GROUP=num_heads // kv[0].shape[1],
        HEADS=num_heads,
        DIM=dim,
        BLOCK_D=padded(dim),
        BLOCK_SIZE=table.block_size,
        BLOCK_E=padded(num_chunks, MIN_ENTRIES),
        ROWS=rows,
        TILE=tile,
        PRODUCT=product_dtype(query),
        num_warps=8 if rows == MAX_ROWS else 4,
        num_stages=2,
        enable_fp_fusion=True,
    )


def tile_shape(num_rows: int, block_d: int, element_bytes: int) -> tuple[int, int]:
    """Rows of the query and tokens of KV that a program multiplies at once."""
    tile = max(MIN_DOT, min(MAX_TILE, TILE_BYTES // (block_d * element_bytes)))
    # A program keeps rows × (dim + tile) sums in registers; float32 has no tensor cores, whose
    # operands stay in shared memory.
    most = MAX_ROWS if element_bytes == 2 and block_d <= 128 else MAX_ROWS // 4
    return min(most, padded(num_rows)), tile


@kernel("num_chunks", "entry_stride", "block_stride")
def _attend(  # noqa: PLR0913, PLR0915  a kernel takes pointers and strides one by one
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_ids: tl.tensor,
    starts: tl.tensor,
    stops: tl.tensor,
    first_rows: tl.tensor,
    out: tl.tensor,
    num_chunks: tl.tensor,
    scale: tl.tensor,
    query_head_stride: tl.tensor,
    query_row_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_head_stride: tl.tensor,
    entry_stride: tl.tensor,
    block_stride: tl.tensor,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:
    """Some rows of one chunk, for one query head."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    chunks = tl.arange(0, BLOCK_E)
    first_tiles = tl.load(first_rows + chunks, mask=chunks < num_chunks, other=0) // ROWS + chunks
    chunk = tl.sum(((first_tiles <= tile) & (chunks < num_chunks)).to(tl.int32), 0) - 1
    first_row = tl.load(first_rows + chunk)
    num_rows = tl.load(first_rows + chunk + 1) - first_row
    first = (tile - (first_row // ROWS + chunk)) * ROWS
    if first < num_rows:
        start = tl.load(starts + chunk)
        stop = tl.load(stops + chunk)
        offsets = first + tl.arange(0, ROWS)
        positions = stop - num_rows + offsets
        row = (first_row + offsets).to(tl.int64)
        dims = tl.arange(0, BLOCK_D)
        is_query = (offsets < num_rows)[:, None] & (dims < DIM)[None, :]
        query_at = head * query_head_stride + row[:, None] * query_row_stride + dims[None, :]
        q = tl.load(query + query_at, mask=is_query, other=0.0).to(PRODUCT)
        table = block_ids + chunk.to(tl.int64) * entry_stride
        kv_at = (head // GROUP) * kv_head_stride

        first_position = stop - num_rows + first
        if WINDOW:
            start = tl.maximum(start, first_position - WINDOW + 1)
        stop = tl.minimum(stop, first_position + ROWS)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for position in range(start, stop, TILE):
            tokens = position + tl.arange(0, TILE)
            # Loads are masked by what any row sees: slots of others may hold NaN.
            seen = tokens < stop
            blocks = tl.load(table + (tokens // BLOCK_SIZE) * block_stride, mask=seen, other=0)
            slots = blocks.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
            at = slots * slot_stride + kv_at
            k = tl.load(
                keys + at[None, :] + dims[:, None],
                mask=seen[None, :] & (dims < DIM)[:, None],
                other=0.0,
            )
            scores = tl.dot(q, k.to(PRODUCT), input_precision="ieee") * scale
            visible = tokens[None, :] <= positions[:, None]
            if WINDOW:
                visible = visible & (positions[:, None] - tokens[None, :] < WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
            new_best = tl.maximum(best, tl.max(scores, 1))
            # A row that saw nothing so far has no best score to compare with.
            base = tl.where(new_best == float("-inf"), 0.0, new_best)
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(best - base)
            v = tl.load(
                values + at[:, None] + dims[None, :],
                mask=seen[:, None] & (dims < DIM)[None, :],
                other=0.0,
            )
            total = total * shrink + tl.sum(weights, 1)
            weights = weights.to(v.dtype).to(PRODUCT)
            mixed = tl.dot(weights, v.to(PRODUCT), mixed * shrink[:, None], input_precision="ieee")
            best = new_best
        answer = mixed / total[:, None]
        line = row * HEADS + head
        tl.store(
            out + line[:, None] * DIM + dims[None, :],
            answer.to(out.dtype.element_ty),
            mask=is_query,
        )
