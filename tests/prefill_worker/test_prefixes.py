"""Prompts start from what others computed: less to compute, the same token, nothing left behind."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.blocks import BlockState
from prefill_worker.job import PrefillJob, Sampled
from tests.prefill_worker.rig import SIZE, Rig, sampled
from tests.worker_host.fake_engine import expected_tokens

TEN = tuple(range(1, 11))
EIGHT = TEN[:8]

HITS = [
    # id                                     first     second             hits
    ("the same", TEN, TEN, 8),
    ("the same, in whole blocks", EIGHT, EIGHT, 7),
    ("the same, of one block", TEN[:4], TEN[:4], 3),
    ("longer", TEN, (*TEN, 11, 12, 13), 8),
    ("longer, in whole blocks", EIGHT, TEN, 8),
    ("shorter", TEN, TEN[:6], 4),
    ("shorter, in whole blocks", TEN, EIGHT, 7),
    ("changed in the last block", TEN, (*EIGHT, 50, 51), 8),
    ("changed in the second block", TEN, (1, 2, 3, 4, 50, 6, 7, 8, 9), 4),
    ("changed in the first token", TEN, (50, *TEN[1:]), 0),
    ("the same tokens elsewhere", TEN, (5, 6, 7, 8, 1, 2, 3, 4), 0),
    ("no full block", TEN[:3], TEN[:3], 0),
]


@pytest.mark.parametrize("is_leased", [True, False], ids=["leased", "cached"])
@pytest.mark.parametrize(
    ("first", "second", "num_hits"), [case[1:] for case in HITS], ids=[case[0] for case in HITS]
)
async def test_hits(
    first: Sequence[int], second: Sequence[int], num_hits: int, is_leased: bool
) -> None:
    rig = Rig()
    before = rig.open(first, "a/0")
    rig.run()
    if not is_leased:
        rig.phase.close(before)
    job = rig.open(second, "b/0")
    assert sum(num_tokens for _, num_tokens in rig.run()) == len(second) - num_hits
    assert sampled(job).timing.num_hit_tokens == num_hits
    for kept in (before, job) if is_leased else (job,):
        rig.check_kv(kept)
        rig.phase.close(kept)
    rig.check_nothing_is_left()
    load = rig.load()
    looked_up = [len(tokens) for tokens in (first, second) if len(tokens) >= SIZE]
    assert load.num_queried_tokens == sum(looked_up)
    assert load.num_hit_tokens == num_hits
    assert load.num_cached_blocks == rig.blocks.allocator.counts()[BlockState.CACHED]


async def test_tenants_share_nothing() -> None:
    rig = Rig()
    for tenant in ("a", "b"):
        rig.open(TEN, f"{tenant}/0", tenant=tenant)
        assert sum(num_tokens for _, num_tokens in rig.run()) == 10


async def test_without_a_cache_nothing_is_looked_up() -> None:
    rig = Rig(cached=False)
    for name in ("a/0", "b/0"):
        rig.open(TEN, name)
        assert sum(num_tokens for _, num_tokens in rig.run()) == 10
    assert rig.load().num_queried_tokens == 0


async def test_what_was_hit_can_leave_before_the_first_step() -> None:
    rig = Rig()
    rig.open(TEN, "a/0")
    rig.run()
    for prompt, name, num_ready in ((TEN, "b/0", 8), (EIGHT, "c/0", 4)):
        job = rig.open(prompt, name)
        entries = rig.begin()
        assert job.source is not None
        # The block that is copied is not in its place yet.
        assert set(job.source.frontier) == {num_ready}
        rig.end(entries)


async def test_the_copied_block_is_kept_until_its_step_returned() -> None:
    rig = Rig(num_blocks=4)
    rig.phase.close(_computed(rig, EIGHT))
    job = rig.open(EIGHT, "b/0")
    entries = rig.begin()
    assert [len(entry.copies) for entry in entries] == [1]
    rig.phase.close(job)
    counts = rig.blocks.allocator.counts()
    assert counts[BlockState.QUARANTINED] == 3, "two of the table, and the copied one"
    rig.end(entries)
    assert rig.blocks.num_free == 4
    rig.check_nothing_is_left()


async def test_without_room_for_a_copy_the_last_block_is_computed() -> None:
    rig = Rig(num_blocks=2)
    rig.phase.close(_computed(rig, EIGHT))
    job = rig.open(EIGHT, "b/0")
    assert rig.step() == [("b/0", 4)]
    assert sampled(job).timing.num_hit_tokens == 4
    rig.check_kv(job)


async def test_waiting_for_room_wakes_nobody() -> None:
    rig = Rig(num_blocks=4)
    _computed(rig, EIGHT)
    _computed(rig, range(20, 24), "other/0")
    waiting = rig.open((*EIGHT, *range(50, 57)), "b/0")
    num_freed = rig.num_freed
    for _ in range(3):
        assert rig.step() == []
    assert rig.num_freed == num_freed
    assert not waiting.block_ids


SHARES = [
    # id                                     asked                      starts
    ("what is shared counts once", (*EIGHT, *range(50, 66)), True),
    ("one block more than the share", (*EIGHT, *range(50, 67)), False),
    ("nothing is shared", tuple(range(50, 70)), False),
]


@pytest.mark.parametrize(
    ("asked", "starts"), [case[1:] for case in SHARES], ids=[case[0] for case in SHARES]
)
async def test_the_share_of_prompts_counts_a_block_once(asked: Sequence[int], starts: bool) -> None:
    rig = Rig(num_blocks=14, prompt_share=0.5)
    _computed(rig, TEN)
    rig.open(asked, "b/0")
    assert bool(rig.step()) == starts


async def test_an_evicted_prefix_is_computed_again() -> None:
    rig = Rig(num_blocks=4)
    rig.phase.close(_computed(rig, TEN))
    rig.phase.close(_computed(rig, range(50, 66), "b/0"))
    job = rig.open(TEN, "c/0")
    assert sum(num_tokens for _, num_tokens in rig.run()) == 10
    assert sampled(job).timing.num_hit_tokens == 0


# --- shared work in flight --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "num_each"), [(TEN * 2 + TEN[:2], 2), (TEN * 2, 1), (TEN[:3], 3)], ids=str
)
async def test_equal_prompts_at_once_compute_it_once(prompt: Sequence[int], num_each: int) -> None:
    rig = Rig(num_blocks=64)
    jobs = [rig.open(prompt, f"choice/{i}") for i in range(8)]
    done = rig.run()
    assert sum(num_tokens for _, num_tokens in done) == len(prompt) + 7 * num_each
    assert {key for key, _ in done} == {job.work.handoff_id for job in jobs}
    for job in jobs:
        sampled(job)
        rig.check_kv(job)
        rig.phase.close(job)
    rig.check_nothing_is_left()


async def test_who_shares_nothing_does_not_wait_for_those_who_do() -> None:
    rig = Rig()
    rig.open(TEN * 2, "a/0")
    rig.open((*TEN, *TEN, 1, 2), "b/0")
    other = rig.open(range(50, 53), "other/0")
    steps = [rig.step() for _ in range(4)]
    assert steps[2:] == [[("a/0", 4), ("other/0", 3)], [("b/0", 2)]]
    sampled(other)


async def test_a_prompt_goes_on_where_its_prefix_ends_not_where_the_other_prompt_ends() -> None:
    rig = Rig()
    rig.open((*EIGHT, *range(20, 40)), "long/0")
    rig.open(TEN, "short/0")
    assert [rig.step(), rig.step()] == [[("long/0", 8)], [("long/0", 8)]]
    assert rig.step() == [("long/0", 8)], "the budget is the started one's"
    assert rig.step() == [("long/0", 4), ("short/0", 2)]


@pytest.mark.parametrize("num_steps", [0, 1, 2])
async def test_the_next_takes_over_from_one_that_is_cancelled(num_steps: int) -> None:
    rig = Rig(num_blocks=64)
    prompt = TEN * 2 + TEN[:2]
    jobs = [rig.open(prompt, f"choice/{i}") for i in range(3)]
    for _ in range(num_steps):
        rig.step()
    entries = rig.begin()
    rig.phase.close(jobs[0])
    rig.end(entries)
    done = rig.run()
    # What the cancelled one's returned steps computed is not computed again.
    assert sum(n for _, n in done) == len(prompt) - num_steps * 8 + 2
    for job in jobs[1:]:
        sampled(job)
        rig.check_kv(job)
        rig.phase.close(job)
    rig.check_nothing_is_left()


async def test_one_cancelled_while_it_waits_leaves_no_trace() -> None:
    rig = Rig()
    first, second = rig.open(TEN, "a/0"), rig.open(TEN, "b/0")
    rig.step()
    rig.phase.close(second)
    rig.run()
    rig.phase.close(first)
    rig.check_nothing_is_left()


# --- the law ----------------------------------------------------------------------------------

PROMPTS = st.builds(
    lambda num_shared, tail: [*(TEN * 2)[:num_shared], *tail],
    st.integers(0, 20),
    st.lists(st.integers(1, 2), max_size=6),
).filter(bool)
"""Many have a beginning in common."""
OPS = st.one_of(
    st.tuples(st.just("open"), PROMPTS, st.sampled_from(["x", "y"])),
    st.tuples(st.just("step"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("end"), st.integers(0, 30), st.booleans()),
)


@dataclass
class History:
    """Random openings, steps and ends; checks everything that must hold after each."""

    rig: Rig
    num_opened: int = 0
    jobs: list[PrefillJob] = field(default_factory=list)
    """Not ended."""
    computed: list[PrefillJob] = field(default_factory=list)
    """Of them, those whose token was told."""

    def open(self, prompt: Sequence[int], tenant: str) -> None:
        """A prompt of a length that this instance can hold."""
        prompt = prompt[: self.rig.blocks.num_blocks * SIZE]
        self.num_opened += 1
        self.jobs.append(self.rig.open(prompt, f"{self.num_opened}/0", tenant=tenant))

    def step(self, num_others: int, *, cancels: int | None = None) -> bool:
        """One step, during which somebody may go; whether there was one."""
        entries = self.rig.begin(num_others)
        before = {job: job.num_computed for job in self.jobs}
        copied = [target for entry in entries for _, target in entry.copies]
        written = Counter(
            entry.block_ids[position // SIZE]
            for entry in entries
            for position in range(entry.start, entry.stop)
        )
        for job in self.computed:
            assert not set(job.block_ids) & (set(written) | set(copied)), "a lease is read only"
        if cancels is not None:
            self.end(cancels)
        self.rig.end(entries)
        for job in self.jobs:
            assert job.num_computed >= before[job]
            self._look(job)
        return bool(entries)

    def end(self, index: int) -> None:
        """Cancel one, or end its lease."""
        if self.jobs:
            job = self.jobs.pop(index % len(self.jobs))
            self.computed = [other for other in self.computed if other is not job]
            self.rig.phase.close(job)
            self.rig.blocks.allocator.check()

    def _look(self, job: PrefillJob) -> None:
        events = [job.events.get_nowait() for _ in range(job.events.qsize())]
        for event in events:
            if isinstance(event, Sampled):
                assert event.token_id == expected_tokens(job.token_ids, 1)[0]
                self.computed.append(job)
        if job in self.computed:
            self.rig.check_kv(job)

    def finish(self) -> None:
        """Everything ends; a step is missing only where leases hold the room."""
        while self.jobs:
            if not self.step(0):
                assert self.computed, "prompts wait, and nobody has what they wait for"
                self.end(self.jobs.index(self.computed[0]))
        self.rig.check_nothing_is_left()


@given(num_blocks=st.integers(3, 24), share=st.sampled_from([0.5, 1.0]), ops=st.lists(OPS))
def test_laws(num_blocks: int, share: float, ops: list[tuple[str, object, object]]) -> None:
    """Right tokens, leases untouched, sums right after every step, nothing left."""

    async def main() -> None:
        history = History(Rig(num_blocks=num_blocks, prompt_share=share))
        for op in ops:
            match op:
                case ("open", list(prompt), str(tenant)):
                    history.open(prompt, tenant)
                case ("step", int(num_others), bool(cancels)):
                    history.step(num_others, cancels=num_others if cancels else None)
                case ("end", int(index), _):
                    history.end(index)
        history.finish()

    asyncio.run(main())


def _computed(rig: Rig, prompt: Sequence[int], name: str = "a/0") -> PrefillJob:
    job = rig.open(prompt, name)
    rig.run()
    sampled(job)
    return job
