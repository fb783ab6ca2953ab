"""Buckets, padding, and the memory that graphs read: all of it without a device."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import BatchEntry
from engine.cuda.graph_inputs import (
    GraphShape,
    bucket_for,
    buckets_up_to,
    fill,
    plan_of,
    views,
)
from engine.step_plan import plan_step
from tests.engine.tiny import sample_spec

BLOCK_SIZE, MAX_BLOCKS = 4, 7
SHAPE = GraphShape(block_size=BLOCK_SIZE, max_blocks=MAX_BLOCKS, scratch_block=99)

BUCKETS = [
    # id          max  want
    ("one", 1, (1,)),
    ("five", 5, (1, 2, 4, 5)),
    ("eight", 8, (1, 2, 4, 8)),
    ("odd", 21, (1, 2, 4, 8, 16, 21)),
    ("32", 32, (1, 2, 4, 8, 16, 24, 32)),
]


@pytest.mark.parametrize(
    ("max_rows", "want"), [b[1:] for b in BUCKETS], ids=[b[0] for b in BUCKETS]
)
def test_buckets(max_rows: int, want: tuple[int, ...]) -> None:
    assert buckets_up_to(max_rows) == want


@given(max_rows=st.integers(1, 300), num_rows=st.integers(1, 300))
def test_the_smallest_bucket_that_holds_the_rows(max_rows: int, num_rows: int) -> None:
    buckets = buckets_up_to(max_rows)
    got = bucket_for(num_rows, buckets)
    assert got == min((b for b in buckets if b >= num_rows), default=None)
    assert got is None or got < num_rows + 8


def entry(start: int, block_ids: tuple[int, ...], token_id: int, kv_start: int = 0) -> BatchEntry:
    return BatchEntry(
        key="request",
        token_ids=(token_id,),
        start=start,
        block_ids=block_ids,
        sample=sample_spec(),
        kv_start=kv_start,
    )


entries_strategy = st.lists(
    st.integers(0, MAX_BLOCKS * BLOCK_SIZE - 1).flatmap(
        lambda start: st.builds(
            entry,
            st.just(start),
            st.lists(st.integers(0, 98), min_size=MAX_BLOCKS, max_size=MAX_BLOCKS).map(tuple),
            st.integers(0, 1000),
            st.integers(0, start),
        )
    ),
    min_size=1,
    max_size=9,
)


@given(steps=st.lists(entries_strategy, min_size=1, max_size=3))
def test_a_step_is_described_as_a_plan_does(steps: list[list[BatchEntry]]) -> None:
    """Whatever the steps before left in the same memory, and with only the told words copied."""
    host = torch.zeros(SHAPE.num_words(9), dtype=torch.int64)
    device = torch.full_like(host, -1)
    for entries in steps:
        bucket = bucket_for(len(entries), buckets_up_to(9))
        assert bucket is not None
        num_words = fill(views(host, SHAPE, bucket), SHAPE, entries)
        device[:num_words] = host[:num_words]
        got = plan_of(views(device, SHAPE, bucket), SHAPE)
        for row, one in enumerate(entries):
            want = plan_step([one], BLOCK_SIZE, "cpu")
            used = -(-one.stop // BLOCK_SIZE)
            assert torch.equal(got.input_ids[0, row], want.input_ids[0, 0])
            assert torch.equal(got.position_ids[0, row], want.position_ids[0, 0])
            assert isinstance(got.write_index, torch.Tensor)
            assert isinstance(want.write_index, slice)
            assert int(got.write_index[row]) == want.write_index.start
            assert int(got.table.starts[row]) == one.kv_start
            assert int(got.table.stops[row]) == one.stop
            assert torch.equal(got.table.block_ids[row, :used], want.table.block_ids[0])
        for row in range(len(entries), bucket):
            assert isinstance(got.write_index, torch.Tensor)
            assert int(got.write_index[row]) == SHAPE.scratch_block * BLOCK_SIZE
            assert (int(got.table.starts[row]), int(got.table.stops[row])) == (0, 1)
            assert int(got.table.block_ids[row, 0]) == SHAPE.scratch_block


FITS = [
    # id             entry                                                     want
    ("one token", entry(5, (0, 1), 3), True),
    ("the longest", entry(27, tuple(range(7)), 3), True),
    ("too long", entry(28, tuple(range(8)), 3), False),
    ("a chunk", replace(entry(0, (0,), 3), token_ids=(1, 2)), False),
    ("a chunk of one token", replace(entry(5, (0, 1), 3), sample=None), False),
]


@pytest.mark.parametrize(("one", "want"), [f[1:] for f in FITS], ids=[f[0] for f in FITS])
def test_what_a_graph_can_compute(one: BatchEntry, want: bool) -> None:
    assert SHAPE.fits([entry(0, (0,), 1), one]) == want
