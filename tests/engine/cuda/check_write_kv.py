"""Rows of K and V reach their slots, and nothing else does."""

import pytest
import torch

from engine.cuda.write_kv import write_kv
from engine.step_plan import SlotIndex
from tests.engine.cuda.device import DEVICE

INDICES: list[tuple[str, SlotIndex, list[int]]] = [
    # id           index                       slots
    ("a run", slice(7, 12), [7, 8, 9, 10, 11]),
    ("scattered", torch.tensor([9, 0, 31, 4, 5]), [9, 0, 31, 4, 5]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "dim"), [(2, 16), (3, 64), (1, 80), (5, 3)])
@pytest.mark.parametrize(("index", "slots"), [i[1:] for i in INDICES], ids=[i[0] for i in INDICES])
def test_written_where_it_belongs(
    index: SlotIndex, slots: list[int], num_heads: int, dim: int, dtype: torch.dtype
) -> None:
    rows = [torch.randn(5, num_heads, dim).to(DEVICE, dtype) for _ in range(2)]
    caches = [torch.full((32, num_heads, dim), 7.0).to(DEVICE, dtype) for _ in range(2)]
    if isinstance(index, torch.Tensor):
        index = index.to(DEVICE)
    # K as rotation leaves it, V as its projection does.
    key, value = rows[0].transpose(0, 1).contiguous(), rows[1].transpose(0, 1)
    write_kv(key, value, (caches[0], caches[1]), index)
    others = [slot for slot in range(32) if slot not in slots]
    for cache, given in zip(caches, rows, strict=True):
        assert torch.equal(cache[slots], given)
        assert bool((cache[others] == 7).all())
