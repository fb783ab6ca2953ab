"""Ratios, limits and bars from figures; block tables; the read loops on little memory."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.engine_served import served_outcome
from bench.engine_speed import (
    CONTEXT_TOKENS,
    bandwidth_bar,
    greedy_entry,
    num_differing,
    num_read_bytes,
    scattered_tables,
    time_ratio_bar,
)
from bench.read_bandwidth import MATRIX_COLUMNS, NUM_PASSES, ReadLoops
from bench.report import figure
from bench.step_profile import share_outside
from core.clock import MonotonicClock

RATIOS = [
    # id                      ours             theirs           bound want holds
    ("twice as fast", [1.0, 1.0, 9.0], [2.0, 2.0, 2.0], 1.3, 2.0, True),
    ("exactly at the bound", [2.0], [3.0], 1.5, 1.5, True),
    ("slower", [4.0], [2.0], 1.0, 0.5, False),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "bound", "want", "holds"),
    [c[1:] for c in RATIOS],
    ids=[c[0] for c in RATIOS],
)
def test_less_time_is_more_tokens(
    ours: list[float], theirs: list[float], bound: float, want: float, holds: bool
) -> None:
    bar = time_ratio_bar("x", figure("ours", ours, "s"), figure("theirs", theirs, "s"), bound)
    assert (bar.value, bar.holds) == (want, holds)


def test_the_share_of_the_limit() -> None:
    bar = bandwidth_bar(0.03, figure("step", [0.04, 0.05, 0.06], "s"))
    assert bar.value == pytest.approx(0.6)
    assert bandwidth_bar(0.03, figure("step", [0.04], "s")).holds
    assert not bandwidth_bar(0.03, figure("step", [0.06], "s")).holds


def test_a_step_reads_weights_and_the_context_so_far() -> None:
    assert num_read_bytes(1000, 0) == 1000
    assert num_read_bytes(0, 10) == 10 * (CONTEXT_TOKENS + 4 + 24)


def test_served_tokens_count_by_the_median_round() -> None:
    (ours, theirs), (bar,) = served_outcome(100, [1.0, 2.0, 50.0], [4.0, 4.0, 4.0])
    assert (ours.median, theirs.median, bar.value, bar.holds) == (50.0, 25.0, 2.0, True)


def test_differing_tokens() -> None:
    assert num_differing([[1, 2], [3, 4]], [[1, 2], [3, 4]]) == 0
    assert num_differing([[1, 2], [3, 4]], [[1, 9], [9, 9]]) == 3
    with pytest.raises(ValueError, match="shorter"):
        num_differing([[1, 2]], [[1]])


@given(st.integers(2, 20), st.integers(1, 20))
def test_tables_share_no_block_and_hold_no_run(num_tables: int, num_blocks: int) -> None:
    tables = scattered_tables(num_tables, num_blocks)
    assert sorted(b for table in tables for b in table) == list(range(num_tables * num_blocks))
    for table in tables:
        assert len(table) == num_blocks
        assert all(after != before + 1 for before, after in pairwise(table))


def test_an_entry_samples_the_next_position() -> None:
    entry = greedy_entry("x", (7,), 128, range(9), [5, 7])
    assert entry.sample is not None
    assert (entry.stop, entry.sample.position) == (129, 2)


def test_every_loop_reads_all_of_the_memory() -> None:
    num_floats = 4 * MATRIX_COLUMNS
    loops = ReadLoops(MonotonicClock(), num_floats=num_floats)
    sums = {name: float(torch.as_tensor(loop()).sum()) for name, loop in loops.loops.items()}
    assert sums == dict.fromkeys(sums, float(num_floats))
    loops.measure()
    name, bytes_per_s = loops.best()
    assert name in sums
    assert len(bytes_per_s) == NUM_PASSES


SHARES = [("half", 1.0, 2.0, 0.5), ("all in operators", 2.0, 2.0, 0.0), ("slowed", 3.0, 2.0, 0.0)]


@pytest.mark.parametrize(
    ("ops_s", "wall_s", "want"), [c[1:] for c in SHARES], ids=[c[0] for c in SHARES]
)
def test_the_share_outside_operators(ops_s: float, wall_s: float, want: float) -> None:
    assert share_outside(ops_s, wall_s) == want
