"""Sums through memory are bit for bit those in order of ranks, and no wait is without a bound."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.clock import Clock, ManualClock, MonotonicClock
from engine.ranks.atomics import have_sleep
from engine.ranks.errors import GroupBroken
from engine.ranks.shared_kv import map_shared, shared_file
from engine.ranks.shared_sum import HEADER_BYTES, SLOT_VALUES, WORD_BYTES, SharedSum, sums_bytes

pytestmark = pytest.mark.skipif(not have_sleep(), reason="this machine has no futex we know")

TIMEOUT_S = 20.0
NUM_ROUNDS = 5


def never() -> bool:
    return False


def ranks_of(
    num_ranks: int, has_ended: Callable[[], bool] = never, clock: Clock | None = None
) -> list[SharedSum]:
    """Each with a mapping of its own, as in processes of their own."""
    num_bytes = sums_bytes(num_ranks)
    with shared_file(num_bytes) as descriptor:
        memory = [map_shared(descriptor, num_bytes) for _ in range(num_ranks)]
    clock = clock or MonotonicClock()
    return [
        SharedSum(own, rank, num_ranks, TIMEOUT_S, has_ended, clock)
        for rank, own in enumerate(memory)
    ]


def sums(ranks: Sequence[SharedSum], terms: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """What each rank gets, all rounds in one row; `terms` by rank and round."""

    def run(rank: int) -> torch.Tensor:
        own = [term.clone() for term in terms[rank]]
        for term in own:
            ranks[rank].all_reduce(term)
        return torch.cat([term.view(-1) for term in own])

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(run, range(len(ranks))))


def check(ranks: Sequence[SharedSum], terms: Sequence[Sequence[torch.Tensor]]) -> None:
    """Bits, not values: NaN equals NaN, and -0.0 not 0.0."""
    flat = [torch.cat([term.view(-1) for term in own]) for own in terms]
    want = reduce(torch.add, flat).view(torch.int32)
    assert all(torch.equal(got.view(torch.int32), want) for got in sums(ranks, terms))


@settings(max_examples=25)
@given(
    num_ranks=st.integers(1, 4),
    lengths=st.lists(
        st.sampled_from([0, 1, 7, 576, SLOT_VALUES, 2 * SLOT_VALUES + 3]), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**31),
)
def test_equals_the_sum_in_order_of_ranks(num_ranks: int, lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    terms = [
        # Of magnitudes so different that another order would give other bits.
        [torch.randn(n, generator=generator) * 10.0 ** (3 * rank) for n in lengths]
        for rank in range(num_ranks)
    ]
    check(ranks_of(num_ranks), terms)


@pytest.mark.parametrize(
    "values",
    [(-0.0, -0.0), (float("inf"), 1.0), (3e38, 3e38), (1e-45, 1e-45)],
    ids=["minus zero", "infinity", "overflow", "denormal"],
)
def test_no_value_is_special(values: tuple[float, float]) -> None:
    check(ranks_of(2), [[torch.full((2, 3), value)] for value in values])


def test_nan_stays_visible() -> None:
    got = sums(ranks_of(2), [[torch.tensor([float("nan")])], [torch.ones(1)]])
    assert all(bool(values.isnan().all()) for values in got)


@pytest.mark.parametrize("count", [2**31 - 2, 2**32 - 2], ids=["sign", "whole"])
def test_counts_wrap_around(count: int) -> None:
    ranks = ranks_of(2)
    for number, rank in enumerate(ranks):
        rank._count = count
        words = rank._memory[:HEADER_BYTES].view(np.uint32)
        words[number * WORD_BYTES // words.itemsize] = count
    terms = [[torch.full((3,), float(10 * r + i)) for i in range(NUM_ROUNDS)] for r in range(2)]
    check(ranks, terms)


def test_many_small_sums_in_a_row() -> None:
    """Whoever is ahead never writes what another still reads."""
    generator = torch.Generator().manual_seed(0)
    terms = [[torch.randn(64, generator=generator) for _ in range(2000)] for _ in range(3)]
    check(ranks_of(3), terms)


def test_a_rank_that_comes_late_is_waited_for() -> None:
    looked = threading.Event()

    def has_ended() -> bool:
        looked.set()
        return False

    ranks = ranks_of(2, has_ended)
    early, late = torch.tensor([1.0]), torch.tensor([2.0])
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(ranks[0].all_reduce, early)
        assert looked.wait(TIMEOUT_S), "it never looked whether the others live"
        ranks[1].all_reduce(late)
        waiting.result(TIMEOUT_S)
    assert (early.item(), late.item()) == (3.0, 3.0)


def test_a_rank_that_does_not_come_is_bounded() -> None:
    clock = ManualClock()

    def has_ended() -> bool:
        clock.advance(TIMEOUT_S / 2)
        return False

    (rank, _) = ranks_of(2, has_ended, clock)
    values = torch.ones(3)
    with pytest.raises(GroupBroken, match=r"rank 1 of it did not come within 20\.0 s"):
        rank.all_reduce(values)
    assert values.tolist() == [1.0] * 3, "a part of a sum"


def test_ranks_that_ended_are_not_waited_for() -> None:
    (rank, _) = ranks_of(2, has_ended=lambda: True, clock=ManualClock())
    with pytest.raises(GroupBroken, match="another rank has ended"):
        rank.all_reduce(torch.ones(1))


def test_what_does_not_lie_in_one_piece_is_refused() -> None:
    """Its sum would go to a copy."""
    (rank,) = ranks_of(1)
    with pytest.raises(RuntimeError, match="view"):
        rank.all_reduce(torch.ones(3, 4).T)
