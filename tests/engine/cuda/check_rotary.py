"""Rotation in place equals transformers' own."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from engine.cuda.rotary import rotate
from tests.engine.cuda.device import DEVICE

LIMITS = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), [(4, 2, 16), (3, 3, 80), (9, 1, 64)])
def test_equals_transformers(
    num_heads: int, num_kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    sizes = [num_heads * dim, num_kv_heads * dim, num_kv_heads * dim]
    # As joined projections give them: parts of longer rows.
    parts = torch.split(torch.randn(5, sum(sizes)).to(DEVICE, dtype), sizes, dim=-1)
    query, key, value = (part.view(5, -1, dim) for part in parts)
    angles = torch.randn(5, dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)
    heads_first = (part.transpose(0, 1)[None] for part in (query, key))
    want = apply_rotary_pos_emb(*heads_first, cos[None], sin[None])
    value_before = value.clone()
    rotate(query, key, cos, sin)
    limit = LIMITS[dtype]
    for got, expected in zip((query, key), want, strict=True):
        torch.testing.assert_close(got.transpose(0, 1)[None], expected, rtol=limit, atol=limit)
    assert torch.equal(value, value_before)
