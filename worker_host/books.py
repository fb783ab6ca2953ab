"""What an instance says of itself: its load, and whether its sums are right."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.blocks import leak_report
from core.load import Integrity, Load
from engine.block_allocator import IntegrityError
from kv_transfer.book import SourceBook
from kv_transfer.fetch import Fetcher
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.lag import LagMonitor
from worker_host.phase import Phase, PhaseLoad
from worker_host.steps import StepLoop

SUBSCRIPTION_TASK = "subscription"
"""Name of the tasks of a subscribed router: they live as long as it likes."""
_SERVER_TASKS = frozenset(
    {"_schedule_rpc_coro", "_handle_exceptions", "_request_call", "_request_registered_call"}
)
"""gRPC's own, for open calls and for those to come; calls are counted by what they are for."""


@dataclass(slots=True, kw_only=True)
class Books:
    """Reads everybody's counts; changes nothing."""

    phases: Sequence[Phase]
    blocks: InstanceBlocks
    door: Door
    steps: StepLoop
    lag: LagMonitor
    book: SourceBook
    fetcher: Fetcher
    lifelong: frozenset[asyncio.Task[Any]] = frozenset()
    """Tasks that are no request's."""

    def count_from_here(self) -> None:
        """All tasks of this moment live as long as the process."""
        self.lifelong = frozenset(asyncio.all_tasks())

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, in either phase or between instances."""
        return not self.steps.is_running and not any(
            (
                *(phase.load().num_known for phase in self.phases),
                self.book.num_sources,
                self.book.num_fetches,
                self.fetcher.num_fetches,
            )
        )

    def load(self) -> Load:
        """How busy the instance is."""
        return load_of([phase.load() for phase in self.phases], self.blocks, self.door)

    def integrity(self) -> Integrity:
        """All books at this moment; takes the lag samples with it."""
        loads = [phase.load() for phase in self.phases]
        return Integrity(
            blocks=self.blocks.allocator.counts(),
            num_leases=self.book.num_leases,
            num_incoming=sum(load.num_incoming for load in loads),
            num_prefills=sum(load.num_prompts for load in loads),
            num_decodes=sum(load.num_answers for load in loads),
            num_fetches=self.book.num_fetches + self.fetcher.num_fetches,
            num_tasks=self._num_tasks(),
            problem=self._problem(),
            loop_lag_p99_s=self.lag.take_p99_s(),
            num_steps=self.steps.num_steps,
            cpu_s=time.process_time(),
            pid=os.getpid(),
        )

    def _num_tasks(self) -> int:
        tasks = asyncio.all_tasks() - self.lifelong
        return sum(
            task.get_name() != SUBSCRIPTION_TASK
            and getattr(task.get_coro(), "__name__", "") not in _SERVER_TASKS
            for task in tasks
        )

    def _problem(self) -> str:
        try:
            self.blocks.allocator.check()
        except IntegrityError as error:
            return str(error)
        if not self.is_idle:
            return ""
        return leak_report(self.blocks.allocator.counts(), self.blocks.num_blocks) or ""


def load_of(loads: Sequence[PhaseLoad], blocks: InstanceBlocks, door: Door) -> Load:
    """The sum over the phases."""
    return Load(
        num_prefilling=sum(load.num_prefilling for load in loads),
        num_pending_prompt_tokens=sum(load.num_pending_prompt_tokens for load in loads),
        num_incoming=sum(load.num_incoming for load in loads),
        num_decoding=sum(load.num_decoding for load in loads),
        num_context_tokens=sum(load.num_context_tokens for load in loads),
        num_free_blocks=blocks.num_free,
        num_blocks=blocks.num_blocks,
        num_cached_blocks=blocks.allocator.num_cached,
        num_swapped=sum(load.num_swapped for load in loads),
        num_queried_tokens=blocks.cache.num_queried_tokens,
        num_hit_tokens=blocks.cache.num_hit_tokens,
        draining=door.is_draining,
    )
