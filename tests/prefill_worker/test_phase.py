"""What prompts may hold of an instance's blocks."""

import asyncio
from dataclasses import replace

import pytest

from core.blocks import BlockState
from core.clock import ManualClock
from core.config import HandoffConfig
from core.errors import StaleFence
from core.kv_layout import KvLayout
from engine.block_allocator import BlockAllocator
from kv_transfer.book import SourceBook
from kv_transfer.source import Outcome
from prefill_worker.job import Ended, PrefillJob, Sampled, Started
from prefill_worker.phase import PrefillParts, PrefillPhase
from tests.deploy.instances import work
from tests.worker_host.fake_engine import FAKE_SPEC, FINGERPRINT
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.phase import StepOutcome
from worker_host.role import RoleBudget


class Rig:
    """A prefill phase over 16 blocks of 4 tokens; half of them may be prompts'."""

    def __init__(self, prompt_share: float = 0.5) -> None:
        self.blocks = InstanceBlocks(BlockAllocator(16, 4))
        self.clock = ManualClock()
        layout, handoff = KvLayout.of(FAKE_SPEC, 4), HandoffConfig()
        self.holds = StepHolds(self.blocks)
        self.phase = PrefillPhase(
            PrefillParts(
                blocks=self.blocks,
                holds=self.holds,
                layout=layout,
                book=SourceBook(
                    layout=layout, blocks=self.blocks, clock=self.clock, config=handoff
                ),
                door=Door(FINGERPRINT, 16, 4),
                clock=self.clock,
                work=asyncio.Event(),
                budget=RoleBudget(
                    alone_step_tokens=8, mixed_step_tokens=4, prompt_share=prompt_share
                ),
                max_queued=8,
                handoff=handoff,
            )
        )

    def open(self, num_tokens: int, name: str = "a/0", attempt: int = 1) -> PrefillJob:
        """Queue a prompt."""
        request = work(tuple(range(num_tokens)), handoff_id=name, attempt=attempt)
        return self.phase.open(request, only_first_token=False)

    def step(self, num_others: int = 0, seconds: float = 0.5) -> list[tuple[str, int]]:
        """One step: keys and lengths."""
        entries = self.phase.schedule(num_others).entries
        began_at_s = self.clock.now_s()
        self.clock.advance(seconds)
        self.phase.absorb(
            StepOutcome(
                token_ids=[None if entry.sample is None else 7 for entry in entries],
                began_at_s=began_at_s,
                ended_at_s=self.clock.now_s(),
            )
        )
        return [(entry.key, len(entry.token_ids)) for entry in entries]


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
    rig = Rig()
    if num_held:
        rig.open(num_held * 4, "held/0")
        while rig.step():
            pass
        assert rig.blocks.allocator.counts()[BlockState.LEASED] == num_held
    job = rig.open(num_asked * 4)
    rig.step(num_others=num_running)
    assert bool(job.block_ids) == starts


async def test_the_times_of_a_prompt() -> None:
    rig = Rig()
    job = rig.open(20)
    rig.clock.advance(2.0)
    steps = [rig.step() for _ in range(3)]
    assert steps == [[("a/0", 8)], [("a/0", 8)], [("a/0", 4)]]
    assert job.events.get_nowait() == Started(queue_s=2.0)
    sampled = job.events.get_nowait()
    assert isinstance(sampled, Sampled)
    assert (sampled.timing.queue_s, sampled.timing.compute_s) == (2.0, 1.5)


async def test_steps_beside_running_answers_are_smaller() -> None:
    rig = Rig()
    rig.open(12)
    assert [rig.step(num_others=1), rig.step()] == [[("a/0", 4)], [("a/0", 8)]]


async def test_a_cancel_during_a_step_frees_the_blocks_after_it() -> None:
    rig = Rig()
    job = rig.open(8)
    rig.phase.schedule(0)
    rig.holds.step_begins()
    rig.phase.close(job)
    assert rig.blocks.allocator.counts()[BlockState.QUARANTINED] == 2
    rig.phase.absorb(StepOutcome(token_ids=[7], began_at_s=0.0, ended_at_s=1.0))
    rig.holds.step_returned()
    assert rig.blocks.num_free == 16
    assert [job.events.get_nowait() for _ in range(2)][1] == Ended(outcome=Outcome.ABORTED)
    assert job.events.empty(), "the token of a cancelled prompt is nobody's"


async def test_a_refused_attempt_leaves_no_trace() -> None:
    rig = Rig()
    rig.phase.close(rig.open(4, attempt=2))
    with pytest.raises(StaleFence):
        rig.open(4, attempt=1)
    assert rig.phase.load() == replace(rig.phase.load(), num_prefilling=0, num_prompts=0)
