"""Puts K and V of the flat batch into their slots: one launch where torch takes two per layer."""

import torch
import triton.language as tl

from engine.cuda.jit import kernel, padded
from engine.step_plan import SlotIndex


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    index: SlotIndex,
) -> None:
    """Rows of [KV head, row, dim] into the cache's [slot, KV head, dim]; waits for nothing."""
    num_heads, num_rows, dim = key.shape
    slots, first = (None, index.start) if isinstance(index, slice) else (index, 0)
    _write[(num_rows,)](
        *(key, value, *kv, kv[0] if slots is None else slots, first),
        *(key.stride(0), key.stride(1), value.stride(0), value.stride(1)),
        IS_RUN=slots is None,
        DIM=dim,
        SIZE=num_heads * dim,
        BLOCK=padded(num_heads * dim),
        num_warps=4,
        enable_fp_fusion=True,
    )


@kernel("first_slot")
def _write(  # noqa: PLR0913
    key: tl.tensor,
    value: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    first_slot: tl.tensor,
    key_head_stride: tl.tensor,
    key_row_stride: tl.tensor,
    value_head_stride: tl.tensor,
    value_row_stride: tl.tensor,
    IS_RUN: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """All heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    heads, dims = at // DIM, at % DIM
    # `slots` is no index where the slots are one run.
    slot = first_slot + row if IS_RUN else tl.load(slots + row)
    k = tl.load(key + heads * key_head_stride + row * key_row_stride + dims, mask=at < SIZE)
    v = tl.load(value + heads * value_head_stride + row * value_row_stride + dims, mask=at < SIZE)
    tl.store(keys + slot * SIZE + at, k, mask=at < SIZE)
    tl.store(values + slot * SIZE + at, v, mask=at < SIZE)
