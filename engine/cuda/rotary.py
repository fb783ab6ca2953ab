"""Rotary positions for queries and keys, in place and in one launch; torch takes ten."""

import torch
import triton.language as tl

from engine.cuda.jit import kernel, padded


def rotate(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn [row, head, dim] of both by [row, dim] angles whose halves are alike, as transformers
    makes them. Rows may lie further apart than they are long."""
    num_rows, num_heads, dim = query.shape
    _rotate[(num_rows, num_heads + key.shape[1])](
        *(query, key, cos, sin, query.stride(0), key.stride(0), cos.stride(0), sin.stride(0)),
        QUERY_HEADS=num_heads,
        DIM=dim,
        BLOCK=padded(dim // 2),
        num_warps=1,
        enable_fp_fusion=True,
    )


@kernel()
def _rotate(  # noqa: PLR0913
    query: tl.tensor,
    key: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    cos_stride: tl.tensor,
    sin_stride: tl.tensor,
    QUERY_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One head of one row, of the query or of the key."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < DIM // 2
    c = tl.load(cos + row * cos_stride + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + row * sin_stride + at, mask=inside, other=0.0).to(tl.float32)
    if head < QUERY_HEADS:
        line = query + row * query_stride + head * DIM
    else:
        line = key + row * key_stride + (head - QUERY_HEADS) * DIM
    first = tl.load(line + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(line + DIM // 2 + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(line + at, (first * c - second * s).to(query.dtype.element_ty), mask=inside)
    tl.store(line + DIM // 2 + at, (second * c + first * s).to(query.dtype.element_ty), mask=inside)
