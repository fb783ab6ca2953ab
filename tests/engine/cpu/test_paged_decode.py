"""Paged decode attention against torch, entry by entry, over blocks in any order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from engine.cpu.paged_decode import paged_decode
from engine.step_plan import PagedTable

BLOCK_SIZE = 4
NUM_PREFILLS = 1
"""One chunk of 2 rows before the answers: it must be left alone."""
NUM_PREFILL_ROWS = 2

Case = tuple[int, int, int]
"""Query heads that share a KV head, KV heads, dim."""

CASES = [
    # id                      shared KV dim  starts and stops              window
    ("one token", (1, 1, 8), [(0, 1)], None),
    ("one head of 64", (1, 1, 64), [(0, 9)], None),
    ("grouped heads", (3, 3, 64), [(0, 33), (0, 17), (0, 1)], None),
    ("odd dim", (2, 1, 13), [(0, 21), (0, 5)], None),
    ("dim of 256", (2, 2, 256), [(0, 10)], None),
    ("window", (2, 2, 16), [(0, 30), (0, 4)], 5),
    ("window and KV dropped", (2, 2, 16), [(9, 30), (3, 12)], 20),
    ("all lengths apart", (1, 2, 32), [(0, 100), (0, 50), (0, 25), (0, 2)], None),
]


def _run(case: Case, ranges: list[tuple[int, int]], window: int | None) -> None:
    num_shared, num_kv_heads, dim = case
    torch.set_num_threads(1)
    num_blocks = max(-(-stop // BLOCK_SIZE) for _, stop in ranges)
    ids = torch.randperm(len(ranges) * num_blocks).view(len(ranges), num_blocks).int()
    kv = torch.full((2, ids.numel() * BLOCK_SIZE, num_kv_heads, dim), math.nan)
    query = torch.randn(num_shared * num_kv_heads, NUM_PREFILL_ROWS + len(ranges), dim)
    out = torch.full((query.shape[1], query.shape[0], dim), 7.0)
    want = out.clone()
    for entry, (start, stop) in enumerate(ranges):
        first = start if window is None else max(start, stop - window)
        positions = torch.arange(first, stop)
        slots = ids[entry, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        kv[:, slots] = torch.randn(2, len(slots), num_kv_heads, dim)
        keys, values = kv[:, slots].transpose(1, 2).repeat_interleave(num_shared, dim=1)
        row = NUM_PREFILL_ROWS + entry
        want[row] = scaled_dot_product_attention(query[:, row, None], keys, values, scale=0.3)[:, 0]
    chunk = torch.zeros(NUM_PREFILLS, num_blocks, dtype=torch.int32)
    bounds = torch.tensor([(0, 2), *ranges], dtype=torch.int32)
    table = PagedTable(
        block_ids=torch.cat((chunk, ids)),
        starts=bounds[:, 0].contiguous(),
        stops=bounds[:, 1].contiguous(),
        rows=torch.tensor([0, *range(2, len(ranges) + 3)], dtype=torch.int32),
        max_stop=int(bounds.max()),
        num_prefills=NUM_PREFILLS,
        block_size=BLOCK_SIZE,
    )
    paged_decode(query, (kv[0], kv[1]), table, 0.3, window, out)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "ranges", "window"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_paged_decode(case: Case, ranges: list[tuple[int, int]], window: int | None) -> None:
    _run(case, ranges, window)


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 40)),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=5),
    st.one_of(st.none(), st.integers(1, 40)),
)
@settings(deadline=None)
def test_paged_decode_of_any_shape(
    case: Case, lengths: list[tuple[int, int]], window: int | None
) -> None:
    _run(case, [(start, start + length) for start, length in lengths], window)
