"""What a layer does between its matrix products, in one pass over memory each."""

import torch
import triton.language as tl

from engine.cuda.jit import kernel, padded

GATE_BLOCK = 1024


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, round_first: bool
) -> torch.Tensor:
    """Root mean square norm of [..., dim] over its last dimension.

    `round_first` is where transformers rounds to the dtype of x: before the weight (Llama) or after
    it (Gemma).
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    dim = x.shape[-1]
    block = padded(dim)
    _rms_norm[(x.numel() // dim,)](
        *(x, weight, out, eps),
        DIM=dim,
        BLOCK=block,
        ROUND_FIRST=round_first,
        num_warps=max(1, min(16, block // 512)),
        enable_fp_fusion=True,
    )
    return out


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) · up` of [..., size], whose rows may lie further apart than they are long."""
    rows = [part.reshape(-1, part.shape[-1]) for part in (gate, up)]
    num_rows, size = rows[0].shape
    out = gate.new_empty(gate.shape)
    _silu_times[(num_rows, -(-size // GATE_BLOCK))](
        *(*rows, out, rows[0].stride(0), rows[1].stride(0)),
        SIZE=size,
        BLOCK=GATE_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


@kernel()
def _rms_norm(  # noqa: PLR0913
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * DIM + at, mask=at < DIM, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=at < DIM, other=0.0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / DIM + eps)
    if ROUND_FIRST:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * DIM + at, (normed * w).to(out.dtype.element_ty), mask=at < DIM)


@kernel()
def _silu_times(  # noqa: PLR0913
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A part of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + row * gate_stride + at, mask=at < SIZE, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + at, mask=at < SIZE, other=0.0).to(tl.float32)
    # Rounded in between, as two operations of torch do.
    active = (g / (1.0 + tl.exp(-g))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * SIZE + at, (active * u).to(out.dtype.element_ty), mask=at < SIZE)
