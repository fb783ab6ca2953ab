"""First come, first served, in chunks that never exceed the step's budget."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Saturated
from prefill_worker.scheduler import Chunk, PrefillScheduler


@dataclass(eq=False)
class Job:
    """A prompt."""

    num_tokens: int
    num_blocks: int = 1
    num_computed: int = 0


CASES = [
    # id                               prompts    budget  want: tokens per job and step
    ("one chunk", [5], 8, [[5]]),
    ("exactly the budget", [8], 8, [[8]]),
    ("three chunks", [20], 8, [[8], [8], [4]]),
    ("short ones share a step", [3, 3, 2], 8, [[3, 3, 2]]),
    ("the second begins in what is left", [6, 6], 8, [[6, 2], [4]]),
    ("in order of arrival", [10, 2], 8, [[8], [2, 2]]),
]


@pytest.mark.parametrize(
    ("prompts", "budget", "want"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_chunks(prompts: list[int], budget: int, want: list[list[int]]) -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8)
    for num_tokens in prompts:
        scheduler.add(Job(num_tokens))
    steps = []
    while chunks := scheduler.schedule(budget, lambda job: True):
        steps.append([len(chunk.tokens) for chunk in chunks])
        _absorb(scheduler, chunks)
    assert steps == want
    assert scheduler.num_jobs == 0


def test_a_prompt_without_room_holds_up_those_behind_it() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8)
    large, small = Job(4, num_blocks=9), Job(4)
    scheduler.add(large)
    scheduler.add(small)
    assert scheduler.schedule(8, lambda job: job.num_blocks < 5) == []
    scheduler.remove(large)
    assert [chunk.job for chunk in scheduler.schedule(8, lambda job: True)] == [small]


def test_the_queue_is_bounded() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(2)
    scheduler.add(Job(1))
    scheduler.add(Job(1))
    with pytest.raises(Saturated, match="2 requests wait for prefill"):
        scheduler.add(Job(1))


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    budget=st.integers(1, 16),
    num_blocks=st.integers(5, 8),
    data=st.data(),
)
def test_laws(prompts: list[int], budget: int, num_blocks: int, data: st.DataObject) -> None:
    """Each token once and in order, the budget kept, jobs started and ended in order."""
    scheduler: PrefillScheduler[Job] = PrefillScheduler(len(prompts))
    jobs = [Job(num_tokens, num_blocks=1 + num_tokens // 10) for num_tokens in prompts]
    free = num_blocks
    started: list[Job] = []

    def start(job: Job) -> bool:
        nonlocal free
        if job.num_blocks > free:
            return False
        free -= job.num_blocks
        started.append(job)
        return True

    for job in jobs:
        scheduler.add(job)
    ended: list[Job] = []
    while scheduler.num_jobs:
        chunks = scheduler.schedule(budget, start)
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= budget
        for chunk in chunks:
            assert chunk.tokens.start == chunk.job.num_computed
        ended += (done := _absorb(scheduler, chunks))
        free += sum(job.num_blocks for job in done)
        victim = data.draw(st.sampled_from(jobs))
        if data.draw(st.booleans()) and victim not in ended:
            scheduler.remove(victim)
            ended.append(victim)
            free += victim.num_blocks if victim in started else 0
    assert started == [job for job in jobs if job in started]
    assert free == num_blocks
    assert scheduler.num_pending_tokens == 0


def _absorb(scheduler: PrefillScheduler[Job], chunks: list[Chunk[Job]]) -> list[Job]:
    """Count what was computed; jobs that are complete leave."""
    done = [chunk.job for chunk in chunks if chunk.is_last]
    for chunk in chunks:
        chunk.job.num_computed = chunk.tokens.stop
    for job in done:
        scheduler.remove(job)
    return done
