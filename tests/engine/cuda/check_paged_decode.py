"""Split decode attention against the plain one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cuda.paged_decode import MAX_SPLITS, PagedDecode, split_count, tile_tokens
from tests.engine.cuda.paged_attention import Heads, Request, assert_close, make_case

ONE, MANY = PagedDecode(1), PagedDecode(10**6)
"""Kernels that never split, and that split as far as they may."""

R = Request
CASES = [
    # id                  requests                              heads                    window
    ("one token", [R(1)], Heads(), None),
    ("mixed lengths", [R(1, 130), R(1, 5), R(1, 64)], Heads(), None),
    ("one head per group", [R(1, 70), R(1, 3)], Heads(num_heads=3, num_kv_heads=3), None),
    ("nine heads on three", [R(1, 40)], Heads(num_heads=9, num_kv_heads=3, dim=64), None),
    ("group of 20", [R(1, 20)], Heads(num_heads=20, num_kv_heads=1), None),
    ("dim 8", [R(1, 20)], Heads(dim=8), None),
    ("dim 80", [R(1, 90), R(1, 17)], Heads(dim=80), None),
    ("dim 96", [R(1, 33)], Heads(dim=96), None),
    ("dim 256", [R(1, 70)], Heads(dim=256), None),
    ("window", [R(1, 130), R(1, 5), R(1, 9)], Heads(), 10),
    ("window over a tile", [R(1, 200)], Heads(), 100),
    ("forgotten", [R(1, 130, 77), R(1, 20, 3), R(1, 16, 16)], Heads(), None),
    ("forgotten and window", [R(1, 130, 70), R(1, 130, 120)], Heads(), 40),
    ("after a chunk", [R(5, 3), R(1, 80), R(4), R(1, 2)], Heads(), None),
    ("bfloat16", [R(1, 130), R(1, 5)], Heads(dim=32, dtype=torch.bfloat16), None),
    ("float16", [R(1, 130), R(1, 5)], Heads(dim=32, dtype=torch.float16), None),
]


@pytest.mark.parametrize("kernel", [ONE, MANY], ids=["one split", "splits"])
@pytest.mark.parametrize(
    ("requests", "heads", "window"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_equals_the_plain_one(
    requests: list[Request], heads: Heads, window: int | None, kernel: PagedDecode
) -> None:
    case = make_case(requests, heads)
    got = case.compute(kernel, window)
    first = int(case.table.rows[case.table.num_prefills])
    assert bool(got[:first].isnan().all()), "rows of chunks are another kernel's"
    assert_close(got[first:], case.reference(window)[first:])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.integers(0, 150).flatmap(
            lambda start: st.builds(R, st.just(1), st.just(start), st.integers(0, start))
        ),
        min_size=1,
        max_size=3,
    ),
    block_size=st.sampled_from([1, 3, 8, 16, 32]),
    num_programs=st.integers(1, 40),
    window=st.none() | st.integers(1, 160),
    group=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_any_requests(
    requests: list[Request],
    block_size: int,
    num_programs: int,
    window: int | None,
    group: int,
    seed: int,
) -> None:
    case = make_case(requests, Heads(num_heads=2 * group, dim=24), block_size, seed)
    assert_close(case.compute(PagedDecode(num_programs), window), case.reference(window))


def test_a_table_laid_out_block_by_block() -> None:
    """As graphs keep it: the longest entry decides how much of it is copied."""
    case = make_case([R(1, 100), R(1, 30)], Heads())
    want = case.compute(MANY)
    turned = case.table.block_ids.t().contiguous().t()
    object.__setattr__(case.table, "block_ids", turned)
    assert case.table.block_ids.stride(0) == 1
    assert torch.equal(case.compute(MANY), want)


SPLITS = [
    # id                          parts  longest  tile  programs  want
    ("nothing to split", 1, 1, 64, 264, 1),
    ("as many as tiles", 8, 1024, 64, 264, 16),
    ("as many as fill the device", 8, 100_000, 64, 264, 33),
    ("a full device", 512, 100_000, 64, 264, 1),
    ("no more than are joined", 1, 100_000, 64, 264, MAX_SPLITS),
]


@pytest.mark.parametrize(
    ("parts", "longest", "tile", "programs", "want"),
    [s[1:] for s in SPLITS],
    ids=[s[0] for s in SPLITS],
)
def test_split_count(parts: int, longest: int, tile: int, programs: int, want: int) -> None:
    assert split_count(parts, longest, tile, programs) == want


def test_a_tile_fits_shared_memory() -> None:
    assert [tile_tokens(n) for n in (32, 256, 512, 1024, 4096)] == [64, 64, 32, 16, 16]
