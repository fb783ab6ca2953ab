"""A prefill phase over the fake engine, driven step by step."""

import asyncio
from collections.abc import Sequence

import numpy as np

from core.blocks import IDLE_STATES
from core.clock import ManualClock
from core.config import HandoffConfig
from core.kv_layout import KvLayout
from core.load import Load
from engine.batch import BatchEntry
from engine.block_allocator import BlockAllocator
from kv_transfer.book import SourceBook
from kv_transfer.moving import MovingCosts
from prefill_worker.costs import MeasuredCosts
from prefill_worker.job import PrefillJob, Sampled
from prefill_worker.overlap import Overlap
from prefill_worker.phase import PrefillParts, PrefillPhase
from tests.deploy.instances import work
from tests.worker_host.fake_engine import (
    FAKE_SPEC,
    FINGERPRINT,
    FakeRunner,
    expected_tokens,
    kv_of,
)
from worker_host.blocks import InstanceBlocks
from worker_host.books import load_of
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.phase import StepOutcome
from worker_host.role import RoleBudget

SIZE = 4
"""Tokens per block."""
STEP_TOKENS = 8


class Rig:
    """An instance's prefill side over `num_blocks` blocks."""

    def __init__(
        self, *, num_blocks: int = 16, prompt_share: float = 1.0, cached: bool = True
    ) -> None:
        self.blocks = (
            InstanceBlocks.cached(num_blocks, SIZE, bytes(32))
            if cached
            else InstanceBlocks(BlockAllocator(num_blocks, SIZE))
        )
        self.num_freed = 0
        """How often somebody was told that there is room."""
        self.blocks.on_freed(self._freed)
        self.clock = ManualClock()
        self.costs = MeasuredCosts()
        self.runner = FakeRunner(num_blocks, SIZE)
        self.holds = StepHolds(self.blocks)
        self.door = Door(FINGERPRINT, num_blocks, SIZE)
        self.budget = RoleBudget(
            alone_step_tokens=STEP_TOKENS,
            mixed_step_tokens=STEP_TOKENS // 2,
            prompt_share=prompt_share,
        )
        """Of its role; another one makes another."""
        layout, handoff = KvLayout.of(FAKE_SPEC, SIZE), HandoffConfig()
        self.phase = PrefillPhase(
            PrefillParts(
                blocks=self.blocks,
                holds=self.holds,
                layout=layout,
                book=SourceBook(
                    layout=layout, blocks=self.blocks, clock=self.clock, config=handoff
                ),
                door=self.door,
                clock=self.clock,
                work=asyncio.Event(),
                budget=lambda: self.budget,
                max_queued=64,
                ageing_s=10.0,
                costs=self.costs,
                overlap=Overlap(
                    layout=layout, handoff=handoff, costs=self.costs, moving=MovingCosts()
                ),
            )
        )

    def open(
        self,
        prompt: Sequence[int],
        name: str = "a/0",
        *,
        attempt: int = 1,
        tenant: str = "",
        priority: int = 0,
    ) -> PrefillJob:
        """Queue a prompt."""
        request = work(
            tuple(prompt), handoff_id=name, attempt=attempt, tenant=tenant, priority=priority
        )
        return self.phase.open(request, only_first_token=False)

    def begin(self, num_others: int = 0) -> list[BatchEntry]:
        """Schedule a step, and say that it runs."""
        entries = list(self.phase.schedule(num_others).entries)
        if entries:
            self.holds.step_begins()
        return entries

    def end(self, entries: Sequence[BatchEntry], seconds: float = 0.5) -> None:
        """Compute it, and let it return."""
        if not entries:
            return
        began_at_s = self.clock.now_s()
        result = self.runner.step(entries)
        self.clock.advance(seconds)
        self.phase.absorb(
            StepOutcome(
                token_ids=result.token_ids, began_at_s=began_at_s, ended_at_s=self.clock.now_s()
            )
        )
        self.holds.step_returned()
        self.blocks.allocator.check()

    def step(self, num_others: int = 0) -> list[tuple[str, int]]:
        """One step: keys and lengths."""
        entries = self.begin(num_others)
        self.end(entries)
        return [(entry.key, len(entry.token_ids)) for entry in entries]

    def run(self) -> list[tuple[str, int]]:
        """Steps until there is nothing to compute."""
        done: list[tuple[str, int]] = []
        while step := self.step():
            done += step
        return done

    def load(self) -> Load:
        """As the instance tells it."""
        return load_of([self.phase.load()], self.blocks, self.door)

    def check_kv(self, job: PrefillJob) -> None:
        """All KV of a computed prompt is in its blocks."""
        tokens = range(job.num_tokens)
        got = self.runner.store.data[:, :, self.runner.store.slots(job.block_ids, tokens)]
        for layer in range(FAKE_SPEC.num_layers):
            assert np.array_equal(got[layer], kv_of(tokens, job.token_ids, layer))

    def check_nothing_is_left(self) -> None:
        """Nothing is known of any prompt, and nobody holds a block."""
        counts = self.blocks.allocator.counts()
        assert {state for state, n in counts.items() if n} <= IDLE_STATES
        assert (self.phase.blocks.num_held, self.phase.blocks.num_in_flight) == (0, 0)
        load = self.load()
        assert (load.num_prefilling, load.num_pending_prompt_tokens) == (0, 0)

    def _freed(self) -> None:
        self.num_freed += 1


def sampled(job: PrefillJob) -> Sampled:
    """What was told of its token; it must be the right one."""
    events = [job.events.get_nowait() for _ in range(job.events.qsize())]
    (event,) = [event for event in events if isinstance(event, Sampled)]
    assert event.token_id == expected_tokens(job.token_ids, 1)[0]
    return event
