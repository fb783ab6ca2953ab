"""Everybody in turn, in chunks that never exceed the step's budget."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Saturated
from policy.fairness import Claim
from prefill_worker.scheduler import MAX_HIT_TOKENS, MAX_PASSED_OVER, Chunk, PrefillScheduler, Start


@dataclass(eq=False)
class Job:
    """A prompt."""

    num_tokens: int
    num_blocks: int = 1
    num_computed: int = 0
    claim: Claim = field(default_factory=lambda: Claim(tenant="", priority=0, arrived_at_s=0.0))


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
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8, ageing_s=10.0)
    for num_tokens in prompts:
        scheduler.add(Job(num_tokens))
    steps = []
    while chunks := scheduler.schedule(budget, 0.0, lambda job: Start.STARTED):
        steps.append([len(chunk.tokens) for chunk in chunks])
        _absorb(scheduler, chunks)
    assert steps == want
    assert scheduler.num_jobs == 0


def test_a_prompt_without_room_holds_up_those_behind_it() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8, ageing_s=10.0)
    large, small = Job(4, num_blocks=9), Job(4)
    scheduler.add(large)
    scheduler.add(small)
    assert scheduler.schedule(8, 0.0, _small_only) == []
    scheduler.remove(large)
    assert [chunk.job for chunk in scheduler.schedule(8, 0.0, lambda job: Start.STARTED)] == [small]


def test_a_prompt_that_waits_for_anothers_prefix_holds_up_nobody() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8, ageing_s=10.0)
    waiting, other = Job(4, num_blocks=9), Job(4)
    scheduler.add(waiting)
    scheduler.add(other)

    def start(job: Job) -> Start:
        return Start.PASSED_OVER if job is waiting else Start.STARTED

    assert [chunk.job for chunk in scheduler.schedule(8, 0.0, start)] == [other]
    scheduler.remove(other)
    assert [c.job for c in scheduler.schedule(8, 0.0, lambda job: Start.STARTED)] == [waiting]


def test_one_step_asks_a_bounded_number_of_waiting_prompts() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(1000, ageing_s=10.0)
    for _ in range(1000):
        scheduler.add(Job(4))
    asked: list[Job] = []

    def start(job: Job) -> Start:
        asked.append(job)
        return Start.PASSED_OVER

    assert scheduler.schedule(8, 0.0, start) == []
    assert len(set(asked)) == len(asked) == MAX_PASSED_OVER


def test_one_step_starts_from_a_bounded_number_of_hits() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(1000, ageing_s=10.0)
    num_hit = MAX_HIT_TOKENS // 4
    for _ in range(1000):
        scheduler.add(Job(num_hit + 1, num_computed=num_hit))
    assert len(scheduler.schedule(1000, 0.0, lambda job: Start.STARTED)) == 4
    assert len(scheduler.schedule(1000, 0.0, lambda job: Start.STARTED)) == 8


TURNS = [
    # id                        (tenant, priority, arrived_at_s)            now_s  want
    ("arrival", [("a", 0, 0.0), ("a", 0, 1.0)], 1.0, [0, 1]),
    ("priority", [("a", 0, 0.0), ("a", 1, 1.0)], 1.0, [1, 0]),
    ("priority, overtaken by age", [("a", 0, 0.0), ("a", 1, 9.0)], 10.0, [0, 1]),
    ("tenants by turns", [("a", 0, 0.0)] * 3 + [("b", 0, 1.0)] * 2, 1.0, [0, 3, 1, 4, 2]),
]


@pytest.mark.parametrize(
    ("claims", "now_s", "want"), [case[1:] for case in TURNS], ids=[case[0] for case in TURNS]
)
def test_turns(claims: list[tuple[str, int, float]], now_s: float, want: list[int]) -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8, ageing_s=10.0)
    jobs = [
        Job(4, claim=Claim(tenant=tenant, priority=priority, arrived_at_s=arrived_at_s))
        for tenant, priority, arrived_at_s in claims
    ]
    for job in jobs:
        scheduler.add(job)
    chunks = scheduler.schedule(100, now_s, lambda job: Start.STARTED)
    assert [jobs.index(chunk.job) for chunk in chunks] == want


def test_only_what_is_computed_is_charged() -> None:
    """Four hits of `a` cost nothing, so `a` and `b` are even after a chunk of four tokens each."""
    scheduler: PrefillScheduler[Job] = PrefillScheduler(8, ageing_s=10.0)
    order = []
    for n, (tenant, num_hit) in enumerate([("a", 4), ("b", 0), ("a", 4), ("b", 0), ("a", 4)]):
        claim = Claim(tenant=tenant, priority=0, arrived_at_s=float(n))
        scheduler.add(Job(4 + num_hit, num_computed=num_hit, claim=claim))
    while chunks := scheduler.schedule(4, 5.0, lambda job: Start.STARTED):
        order += [chunk.job.claim.tenant for chunk in chunks]
        _absorb(scheduler, chunks)
    assert order == ["a", "b", "a", "b", "a"]


def test_the_queue_is_bounded() -> None:
    scheduler: PrefillScheduler[Job] = PrefillScheduler(2, ageing_s=10.0)
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
    scheduler: PrefillScheduler[Job] = PrefillScheduler(len(prompts), ageing_s=10.0)
    jobs = [Job(num_tokens, num_blocks=1 + num_tokens // 10) for num_tokens in prompts]
    free = num_blocks
    started: list[Job] = []

    def start(job: Job) -> Start:
        nonlocal free
        if job.num_blocks > free:
            return Start.NO_ROOM
        free -= job.num_blocks
        started.append(job)
        return Start.STARTED

    for job in jobs:
        scheduler.add(job)
    ended: list[Job] = []
    while scheduler.num_jobs:
        chunks = scheduler.schedule(budget, 0.0, start)
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


def _small_only(job: Job) -> Start:
    return Start.STARTED if job.num_blocks < 5 else Start.NO_ROOM
