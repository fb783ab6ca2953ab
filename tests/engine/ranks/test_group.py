"""Ranks of an instance meet, sum, and pass on states and logits; here as threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest
import torch

from core.clock import MonotonicClock
from core.parallel import ParallelLayout, RankPlace, split
from engine.ranks.atomics import have_sleep
from engine.ranks.errors import GroupBroken
from engine.ranks.group import RankGroup, join_store, open_store
from engine.ranks.shared_sum import SharedSum, sums_bytes

T = TypeVar("T")
TIMEOUT_S = 20.0
VOCAB_SIZE = 11
"""Divides by no number of ranks."""


def on_ranks(
    layout: ParallelLayout,
    work: Callable[[RankPlace, RankGroup], T],
    timeout_s: float = TIMEOUT_S,
) -> list[T]:
    """What `work` returns on each rank."""
    num_ranks = layout.num_workers
    leader_store = open_store(num_ranks, TIMEOUT_S)

    def run(rank: int) -> T:
        store = join_store(leader_store.port, num_ranks, TIMEOUT_S) if rank else leader_store
        place = RankPlace(layout=layout, rank=rank)
        return work(place, RankGroup(place, store, timeout_s))

    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(run, range(num_ranks)))


def sums(place: RankPlace, group: RankGroup, num_values: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(place.rank)
    values = torch.randn(num_values, generator=generator)
    group.all_reduce(values)
    return values


@pytest.mark.parametrize("num_values", [1, 1000, 300_000])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 1), (2, 2), (1, 2)])
def test_sums_are_of_one_stage(tp: int, pp: int, num_values: int) -> None:
    """Every rank has the same bits, or their states would part."""
    got = on_ranks(ParallelLayout(tp=tp, pp=pp), partial(sums, num_values=num_values))
    terms = [
        torch.randn(num_values, generator=torch.Generator().manual_seed(rank))
        for rank in range(tp * pp)
    ]
    for stage in range(pp):
        ranks = slice(stage * tp, (stage + 1) * tp)
        torch.testing.assert_close(got[ranks.start], torch.stack(terms[ranks]).sum(0))
        assert all(torch.equal(values, got[ranks.start]) for values in got[ranks])


@pytest.mark.skipif(not have_sleep(), reason="no sums through memory on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_through_memory_or_not(dtype: torch.dtype) -> None:
    """Memory carries float32 alone; a stage may take turns between it and Gloo."""
    layout, leader_store = ParallelLayout(tp=2), open_store(2, TIMEOUT_S)
    memory, clock = torch.zeros(sums_bytes(2), dtype=torch.uint8), MonotonicClock()

    def run(rank: int) -> list[torch.Tensor]:
        store = join_store(leader_store.port, 2, TIMEOUT_S) if rank else leader_store
        shared = SharedSum(memory, rank, 2, TIMEOUT_S, lambda: False, clock)
        group = RankGroup(RankPlace(layout=layout, rank=rank), store, TIMEOUT_S, shared)
        values = [torch.full((3,), rank + 1.0), torch.full((3,), rank + 1.0, dtype=dtype)]
        for tensor in values:
            group.all_reduce(tensor)
        return values

    with ThreadPoolExecutor(2) as threads:
        for values in threads.map(run, range(2)):
            assert [tensor.tolist() for tensor in values] == [[3.0] * 3] * 2


def passes_on(place: RankPlace, group: RankGroup) -> list[float]:
    """Each stage adds its ranks' numbers to what it received, for two micro-batches."""
    waits, seen = [], []
    for number in range(2):
        states = torch.full((1, 3, 2), 100.0 * number)
        if not place.is_first_stage:
            group.receive_hidden(states, number)
        states += place.rank
        seen.append(float(states[0, 0, 0]))
        if not place.is_last_stage:
            waits.append(group.send_hidden(states.clone(), number))
    for wait in waits:
        wait()
    return seen


def test_states_go_to_the_rank_with_the_same_heads() -> None:
    got = on_ranks(ParallelLayout(tp=2, pp=3), passes_on)
    assert got == [[n, 100 + n] for n in (0, 1, 2, 4, 6, 9)]


def logits(place: RankPlace, group: RankGroup, whole: torch.Tensor) -> torch.Tensor | None:
    columns = split(VOCAB_SIZE, place.layout.tp, place.tp_rank)
    own = whole[:, columns.start : columns.stop].clone() if place.is_last_stage else None
    if place.rank == 0:
        return group.gather_logits(own, torch.empty_like(whole))
    if own is not None:
        group.send_logits(own)
    return None


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2)])
def test_the_leader_gets_every_column(tp: int, pp: int) -> None:
    whole = torch.randn(4, VOCAB_SIZE)
    got = on_ranks(ParallelLayout(tp=tp, pp=pp), partial(logits, whole=whole))
    assert got[0] is not None
    assert torch.equal(got[0], whole)
    assert got[1:] == [None] * (tp * pp - 1)


def test_a_rank_that_does_not_come_is_bounded() -> None:
    store = open_store(2, 0.2)
    place = RankPlace(layout=ParallelLayout(tp=2), rank=0)
    with pytest.raises(GroupBroken, match="cannot find each other"):
        RankGroup(place, store, 0.2)


def test_a_rank_that_does_not_answer_is_bounded() -> None:
    asked = threading.Event()

    def work(place: RankPlace, group: RankGroup) -> None:
        if place.rank == 1:
            assert asked.wait(TIMEOUT_S)
            return
        with pytest.raises(GroupBroken, match=r"receiving from rank 1: .*Timed out"):
            group.gather_logits(torch.ones(1, 6), torch.empty(1, VOCAB_SIZE))
        asked.set()

    on_ranks(ParallelLayout(tp=2), work, timeout_s=1.0)
