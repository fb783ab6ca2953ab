"""Chunk attention against the plain one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cuda.paged_prefill import paged_prefill, tile_shape
from tests.engine.cuda.paged_attention import Heads, Request, assert_close, make_case

R = Request
CASES = [
    # id                  requests                              heads                    window
    ("two tokens", [R(2)], Heads(), None),
    ("a whole prompt", [R(70)], Heads(), None),
    ("more than a tile", [R(150)], Heads(num_heads=2, num_kv_heads=1), None),
    ("a later chunk", [R(20, 90)], Heads(), None),
    ("mixed", [R(5, 3), R(40), R(33, 16), R(2, 100)], Heads(), None),
    ("beside answers", [R(5, 3), R(1, 60), R(17), R(1, 2)], Heads(), None),
    ("one head per group", [R(20), R(3, 9)], Heads(num_heads=3, num_kv_heads=3), None),
    ("nine heads on three", [R(24, 7)], Heads(num_heads=9, num_kv_heads=3, dim=64), None),
    ("dim 8", [R(20)], Heads(dim=8), None),
    ("dim 80", [R(30, 5)], Heads(dim=80), None),
    ("dim 256", [R(40, 5)], Heads(dim=256, num_heads=2), None),
    ("window", [R(70, 5), R(9)], Heads(), 10),
    ("window of one", [R(40, 5)], Heads(), 1),
    ("window over a tile", [R(40, 150)], Heads(), 100),
    ("forgotten", [R(30, 100, 77), R(5, 5, 5)], Heads(), None),
    ("forgotten and window", [R(30, 130, 91)], Heads(), 40),
    ("bfloat16", [R(130, 20), R(5)], Heads(dim=32, dtype=torch.bfloat16), None),
    ("float16", [R(130, 20), R(5)], Heads(dim=32, dtype=torch.float16), None),
    ("as many chunks as are looked through", [R(2, i) for i in range(33)], Heads(), None),
]


@pytest.mark.parametrize(
    ("requests", "heads", "window"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_equals_the_plain_one(requests: list[Request], heads: Heads, window: int | None) -> None:
    case = make_case(requests, heads)
    got = case.compute(paged_prefill, window)
    last = int(case.table.rows[case.table.num_prefills])
    assert bool(got[last:].isnan().all()), "rows of answers are another kernel's"
    assert_close(got[:last], case.reference(window)[:last])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.integers(0, 70).flatmap(
            lambda start: st.builds(R, st.integers(2, 50), st.just(start), st.integers(0, start))
        ),
        min_size=1,
        max_size=3,
    ),
    block_size=st.sampled_from([1, 3, 8, 16, 32]),
    window=st.none() | st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_any_chunks(
    requests: list[Request], block_size: int, window: int | None, seed: int
) -> None:
    case = make_case(requests, Heads(num_heads=2, num_kv_heads=1, dim=24), block_size, seed)
    assert_close(case.compute(paged_prefill, window), case.reference(window))


TILES = [
    # id                  rows  dim  bytes  want
    ("a few rows", 3, 128, 2, (16, 64)),
    ("8B-shaped", 2048, 128, 2, (128, 64)),
    ("wide heads", 2048, 256, 2, (32, 32)),
    ("float32", 2048, 64, 4, (32, 64)),
    ("wide heads in float32", 2048, 256, 4, (32, 16)),
]


@pytest.mark.parametrize(
    ("rows", "dim", "element_bytes", "want"), [t[1:] for t in TILES], ids=[t[0] for t in TILES]
)
def test_tile_shape(rows: int, dim: int, element_bytes: int, want: tuple[int, int]) -> None:
    assert tile_shape(rows, dim, element_bytes) == want
