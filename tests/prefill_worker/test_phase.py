"""What prompts may hold of an instance's blocks."""

from dataclasses import replace

import pytest

from core.blocks import BlockState
from core.errors import StaleFence
from kv_transfer.source import Outcome
from prefill_worker.job import Ended, Sampled, Started
from tests.prefill_worker.rig import Rig, sampled

ROOM = [
    # id                              held  running  asks  starts
    ("alone", 0, 0, 8, True),
    ("larger than its share, alone", 0, 0, 16, True),
    ("inside the share", 4, 0, 4, True),
    ("above the share", 4, 0, 5, False),
    ("running growth is kept", 0, 8, 8, True),
    ("into running growth", 0, 9, 8, False),
]


@pytest.mark.parametrize(
    ("num_held", "num_running", "num_asked", "starts"),
    [case[1:] for case in ROOM],
    ids=[case[0] for case in ROOM],
)
async def test_room(num_held: int, num_running: int, num_asked: int, starts: bool) -> None:
    rig = Rig(prompt_share=0.5)
    if num_held:
        rig.open(range(num_held * 4), "held/0", tenant="another")
        rig.run()
        assert rig.blocks.allocator.counts()[BlockState.LEASED] == num_held
    job = rig.open(range(num_asked * 4))
    rig.step(num_others=num_running)
    assert bool(job.block_ids) == starts


async def test_the_times_of_a_prompt() -> None:
    rig = Rig()
    job = rig.open(range(20))
    rig.clock.advance(2.0)
    steps = [rig.step() for _ in range(3)]
    assert steps == [[("a/0", 8)], [("a/0", 8)], [("a/0", 4)]]
    assert job.events.get_nowait() == Started(queue_s=2.0)
    sampled = job.events.get_nowait()
    assert isinstance(sampled, Sampled)
    assert (sampled.timing.queue_s, sampled.timing.compute_s) == (2.0, 1.5)


async def test_steps_beside_running_answers_are_smaller() -> None:
    rig = Rig()
    rig.open(range(12))
    assert [rig.step(num_others=1), rig.step()] == [[("a/0", 4)], [("a/0", 8)]]


async def test_a_cancel_during_a_step_frees_the_blocks_after_it() -> None:
    rig = Rig()
    job = rig.open(range(8))
    entries = rig.begin()
    rig.phase.close(job)
    assert rig.blocks.allocator.counts()[BlockState.QUARANTINED] == 2
    rig.end(entries)
    assert rig.blocks.num_free == 16
    assert [job.events.get_nowait() for _ in range(2)][1] == Ended(outcome=Outcome.ABORTED)
    assert job.events.empty(), "the token of a cancelled prompt is nobody's"


async def test_a_refused_attempt_leaves_no_trace() -> None:
    rig = Rig()
    rig.phase.close(rig.open(range(4), attempt=2))
    with pytest.raises(StaleFence):
        rig.open(range(4), attempt=1)
    assert rig.phase.load() == replace(rig.phase.load(), num_prefilling=0, num_prompts=0)


async def test_a_smaller_share_lets_those_finish_that_are_above_it() -> None:
    rig = Rig(num_blocks=16, prompt_share=1.0)
    above = [rig.open([n] * 16, f"{n}/0") for n in (1, 2, 3)]
    rig.step()
    rig.step()
    rig.budget = replace(rig.budget, prompt_share=0.5)
    # Two were begun, and take what half of the blocks are: the third waits, where it had room.
    late = above.pop()
    rig.run()
    assert [sampled(job) is not None for job in above] == [True, True]
    assert not late.block_ids
    rig.phase.close(above[0])
    rig.run()
    assert sampled(late)
    for job in (above[1], late):
        rig.phase.close(job)
    rig.check_nothing_is_left()


async def test_a_larger_share_holds_for_those_that_wait() -> None:
    rig = Rig(num_blocks=16, prompt_share=0.5)
    first, second = (rig.open([n] * 20, f"{n}/0") for n in (1, 2))
    rig.run()
    assert (len(first.block_ids), len(second.block_ids)) == (5, 0)
    rig.budget = replace(rig.budget, prompt_share=1.0)
    rig.run()
    assert sampled(second)
    for job in (first, second):
        rig.phase.close(job)
    rig.check_nothing_is_left()
