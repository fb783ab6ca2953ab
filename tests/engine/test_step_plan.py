"""The flat batch: who lies where, which slots are read and written, and what is padded."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import BatchEntry
from engine.step_plan import SlotIndex, plan_step
from tests.engine.tiny import sample_spec


def entry(
    num_tokens: int, start: int, block_ids: Sequence[int], *, sampled: bool = True
) -> BatchEntry:
    """Token ids that name their own position."""
    return BatchEntry(
        key="",
        token_ids=range(start, start + num_tokens),
        start=start,
        block_ids=block_ids,
        sample=sample_spec() if sampled else None,
    )


def slots_of(index: SlotIndex) -> list[int]:
    if isinstance(index, slice):
        return list(range(index.start, index.stop))
    return [int(slot) for slot in index]


def test_chunks_first_then_single_tokens_by_falling_length() -> None:
    entries = [
        entry(1, 5, (0, 1)),
        entry(3, 2, (2, 4)),
        entry(1, 7, (5, 6)),
        entry(2, 0, (3,), sampled=False),
    ]
    plan = plan_step(entries, 4, "cpu")
    assert plan.order == (1, 3, 2, 0)
    assert plan.input_ids.tolist() == plan.position_ids.tolist() == [[2, 3, 4, 0, 1, 7, 5]]
    assert plan.sampled == (1, 2, 0)
    assert plan.sampled_rows.tolist() == [2, 5, 6]
    assert slots_of(plan.write_index) == [10, 11, 16, 12, 13, 27, 5]
    assert [slots_of(span.index) for span in plan.prefills] == [[8, 9, 10, 11, 16], [12, 13]]
    assert [(s.rows, s.start, s.stop) for s in plan.prefills] == [
        (slice(0, 3), 2, 5),
        (slice(3, 5), 0, 2),
    ]


def test_padding_names_the_requests_own_first_slot() -> None:
    plan = plan_step([entry(1, 5, (0, 3)), entry(1, 3, (2,))], 4, "cpu")
    (group,) = plan.decodes
    assert group.padded
    assert group.lengths.tolist() == [6, 4]
    assert slots_of(group.index) == [0, 1, 2, 3, 12, 13, 8, 9, 10, 11, 8, 8]


GROUPS = [
    # id                       lengths            want
    ("alone", [9], [[9]]),
    ("alike", [9, 9, 8], [[9, 9, 8]]),
    ("half is alike", [8, 4], [[8, 4]]),
    ("one short of half", [8, 3], [[8], [3]]),
    ("a long one apart", [3, 100, 2, 4], [[100], [4, 3, 2]]),
    ("steps", [64, 32, 16, 8, 4], [[64, 32], [16, 8], [4]]),
]


@pytest.mark.parametrize(("lengths", "want"), [g[1:] for g in GROUPS], ids=[g[0] for g in GROUPS])
def test_entries_of_similar_length_share_a_call(lengths: list[int], want: list[list[int]]) -> None:
    entries = [entry(1, length - 1, range(100)) for length in lengths]
    plan = plan_step(entries, 4, "cpu")
    assert [group.lengths.tolist() for group in plan.decodes] == want
    assert [group.rows.start for group in plan.decodes] == list(
        np.cumsum([0, *(len(lens) for lens in want[:-1])])
    )
    assert all(g.padded == (min(w) < max(w)) for g, w in zip(plan.decodes, want, strict=True))


def test_one_run_of_slots_is_read_in_place() -> None:
    plan = plan_step([entry(6, 1, (4, 5))], 4, "cpu")
    assert plan.prefills[0].index == slice(16, 23)
    assert plan.write_index == slice(17, 23)
    scattered = plan_step([entry(6, 1, (5, 4))], 4, "cpu")
    assert isinstance(scattered.write_index, torch.Tensor)


FORGOTTEN = [
    # id                         start kv_start want
    ("nothing", 5, 0, [32, 33, 34, 35, 8, 9]),
    ("a block", 5, 4, [8, 9]),
    ("part of a block", 5, 3, [35, 8, 9]),
    ("all before", 5, 5, [9]),
]


@pytest.mark.parametrize(
    ("start", "kv_start", "want"), [f[1:] for f in FORGOTTEN], ids=[f[0] for f in FORGOTTEN]
)
def test_only_what_is_left_is_read(start: int, kv_start: int, want: list[int]) -> None:
    """One token more in table (8, 2), alone and as a chunk of its own request."""
    single = replace(entry(1, start, (8, 2)), kv_start=kv_start)
    (group,) = plan_step([single], 4, "cpu").decodes
    assert slots_of(group.index) == want
    assert (group.lengths.tolist(), group.max_length) == ([len(want)], len(want))
    chunk = plan_step([replace(entry(2, start, (8, 2)), kv_start=kv_start)], 4, "cpu")
    (span,) = chunk.prefills
    assert slots_of(span.index) == [*want, 10]
    assert (span.start, span.stop) == (start - kv_start, start - kv_start + 2)
    assert slots_of(chunk.write_index) == [9, 10]
    assert chunk.position_ids.tolist() == [[5, 6]]


def test_forgotten_blocks_are_not_looked_up() -> None:
    plan = plan_step([replace(entry(1, 9, (-7, -8, 3)), kv_start=8)], 4, "cpu")
    assert slots_of(plan.decodes[0].index) == [12, 13]


def test_entries_are_sorted_and_padded_by_what_is_left() -> None:
    short = replace(entry(1, 10, (5, 6, 7)), kv_start=9)
    plan = plan_step([short, entry(1, 2, (1,))], 4, "cpu")
    assert plan.order == (1, 0)
    (group,) = plan.decodes
    assert group.lengths.tolist() == [3, 2]
    assert slots_of(group.index) == [4, 5, 6, 29, 30, 29]


@st.composite
def any_entry(draw: st.DrawFn) -> BatchEntry:
    num_tokens, start = draw(st.sampled_from([1, 1, 1, 2, 9])), draw(st.integers(0, 30))
    size = -(-(start + num_tokens) // 4) + draw(st.integers(0, 2))
    first = draw(st.integers(0, 50))
    run = range(first, first + size)
    block_ids = draw(st.just(run) | st.lists(st.integers(0, 99), min_size=size, max_size=size))
    kv_start = draw(st.just(0) | st.integers(0, start))
    one = entry(num_tokens, start, block_ids, sampled=draw(st.booleans()))
    return replace(one, kv_start=kv_start)


def token_slots(one: BatchEntry, tokens: range) -> list[int]:
    return [one.block_ids[p // 4] * 4 + p % 4 for p in tokens]


@given(st.lists(any_entry(), min_size=1, max_size=6))
def test_every_row_token_by_token(entries: list[BatchEntry]) -> None:
    """The plan, and what is worked out of it later, against a walk over every token."""
    plan = plan_step(entries, 4, "cpu")
    assert sorted(plan.order) == list(range(len(entries)))
    ordered = [entries[i] for i in plan.order]
    rows = [(one, p) for one in ordered for p in range(one.start, one.stop)]
    assert plan.position_ids[0].tolist() == plan.input_ids[0].tolist() == [p for _, p in rows]
    assert slots_of(plan.write_index) == [token_slots(one, range(p, p + 1))[0] for one, p in rows]
    asked = [i for i in plan.order if entries[i].sample]
    assert list(plan.sampled) == asked
    last_rows = {
        i: end - 1 for i, end in zip(plan.order, plan.table.rows[1:].tolist(), strict=True)
    }
    assert plan.sampled_rows.tolist() == [last_rows[i] for i in asked]
    for span, one in zip(plan.prefills, ordered, strict=False):
        assert slots_of(span.index) == token_slots(one, range(one.kv_start, one.stop))
    singles = iter(ordered[len(plan.prefills) :])
    for group in plan.decodes:
        lines = [
            token_slots(one, range(one.kv_start, one.stop))
            for _, one in zip(group.lengths, singles, strict=False)
        ]
        assert group.lengths.tolist() == [len(line) for line in lines]
        padded = [line + line[:1] * (group.max_length - len(line)) for line in lines]
        assert slots_of(group.index) == [slot for line in padded for slot in line]
    assert next(singles, None) is None
