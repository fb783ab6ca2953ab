"""Prefill as the step loop sees it: chunks of prompts, whose KV leaves while it is computed."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from core.clock import Clock
from core.kv_layout import KvLayout
from core.request import TokenLogprobs, finish_reason
from core.timing import PrefillTiming
from core.work import WorkRequest
from kv_transfer.book import SourceBook
from kv_transfer.source import FirstToken, Outcome, Source
from prefill_worker.costs import Costs
from prefill_worker.job import Ended, PrefillJob, Sampled, Started
from prefill_worker.overlap import Overlap
from prefill_worker.prompt_blocks import PromptBlocks
from prefill_worker.scheduler import Chunk, PrefillScheduler, Start
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.phase import PhaseLoad, PhaseWork, StepOutcome
from worker_host.role import RoleBudget

logger = logging.getLogger(__name__)

NOTHING = range(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillParts:
    """What the prefill side is given of its instance."""

    blocks: InstanceBlocks
    holds: StepHolds
    layout: KvLayout
    book: SourceBook
    door: Door
    clock: Clock
    work: asyncio.Event
    budget: Callable[[], RoleBudget]
    """For now; asked anew each time."""
    max_queued: int
    ageing_s: float
    costs: Costs
    overlap: Overlap


class PrefillPhase:
    """Owns the prompts: queued, computed, and kept under their leases."""

    def __init__(self, parts: PrefillParts) -> None:
        self._parts = parts
        self._scheduler: PrefillScheduler[PrefillJob] = PrefillScheduler(
            parts.max_queued, ageing_s=parts.ageing_s
        )
        self.blocks = PromptBlocks(parts.blocks, parts.budget)
        self._jobs: dict[PrefillJob, None] = {}
        self._chunks: list[Chunk[PrefillJob]] = []
        self._num_layers_told = 0
        """Of the running step."""
        self._num_others = 0

    def open(
        self,
        work: WorkRequest,
        *,
        only_first_token: bool,
        arrived_at_s: float | None = None,
        fetched: range = NOTHING,
    ) -> PrefillJob:
        """Take a prompt into the queue, or refuse it. It arrived now, unless it was held up until
        the KV of the tokens `fetched` was in the prefix cache."""
        parts = self._parts
        parts.door.check(work, num_kv_tokens=work.num_input_tokens)
        token_ids = work.input_token_ids
        job = PrefillJob(
            work=work,
            token_ids=token_ids,
            # Here and not when its turn comes: a step may be running beside this.
            chain=parts.blocks.names(work.tenant, token_ids),
            only_first_token=only_first_token,
            arrived_at_s=parts.clock.now_s() if arrived_at_s is None else arrived_at_s,
            fetched=fetched,
        )
        # First, since it may end an earlier attempt, whose place in the queue is free then.
        job.source = parts.book.accept(
            work.handoff_id, work.fence, on_ended=lambda source: self._ended(job, source)
        )
        try:
            self._scheduler.add(job)
        except BaseException:
            parts.book.end(job.source, Outcome.ABORTED)
            raise
        self._jobs[job] = None
        parts.work.set()
        return job

    def close(self, job: PrefillJob) -> None:
        """Nobody wants it any more; nothing happens when it has ended."""
        if job.source is not None:
            self._parts.book.end(job.source, Outcome.ABORTED)

    def schedule(self, num_others: int) -> PhaseWork:
        """Chunks of started prompts and of those whose turn it is, up to the role's budget."""
        self._num_others = num_others
        max_tokens = self._parts.budget().step_tokens(num_others)
        self._chunks = self._scheduler.schedule(max_tokens, self._parts.clock.now_s(), self._start)
        self._num_layers_told = 0
        layers = frozenset[int]().union(*(chunk.job.layers for chunk in self._chunks))
        return PhaseWork([chunk.job.entry(chunk.tokens) for chunk in self._chunks], layers)

    def layer_written(self, layer: int) -> None:
        """Segments of all layers up to this one can leave."""
        for told in range(self._num_layers_told, layer + 1):
            for chunk in self._chunks:
                if (source := chunk.job.source) is not None:
                    self._parts.book.progress(source, told, chunk.tokens.stop)
        self._num_layers_told = max(self._num_layers_told, layer + 1)

    def absorb(self, outcome: StepOutcome) -> None:
        """Chunks are computed, and prompts whose last one is among them have their token.

        Tokens first: whoever waits for one waits for it alone, and is woken before the KV.
        """
        for chunk, (token_id, logprobs) in zip(self._chunks, outcome.samples, strict=True):
            if chunk.job in self._jobs and token_id is not None:
                self._tell(chunk.job, token_id, logprobs, outcome)
        self.layer_written(self._parts.layout.num_layers - 1)
        chunks, self._chunks = self._chunks, []
        num_tokens = sum(len(chunk.tokens) for chunk in chunks)
        self._parts.costs.computed(num_tokens, outcome.ended_at_s - outcome.began_at_s)
        for chunk, (token_id, logprobs) in zip(chunks, outcome.samples, strict=True):
            if (job := chunk.job) not in self._jobs:
                continue
            self.blocks.computed(job, chunk.tokens.stop)
            if job.began_at_s is None:
                job.began_at_s = outcome.began_at_s
            if token_id is not None:
                self._sampled(job, token_id, logprobs, outcome.ended_at_s)

    def load(self) -> PhaseLoad:
        """Prompts that are not computed yet."""
        return PhaseLoad(
            num_prefilling=self._scheduler.num_jobs,
            num_pending_prompt_tokens=self._scheduler.num_pending_tokens,
            num_prompts=len(self._jobs),
        )

    def _start(self, job: PrefillJob) -> Start:
        """Take the blocks of the whole prompt; what is cached of it can leave at once."""
        parts = self._parts
        started = self.blocks.take(job, self._num_others)
        if started is not Start.STARTED:
            return started
        assert job.source is not None, "whoever is queued was accepted"
        num_chunk_tokens = min(
            job.num_tokens - job.num_hit_tokens, parts.budget().step_tokens(self._num_others)
        )
        groups = parts.overlap.groups(num_chunk_tokens)
        is_on = parts.book.started(job.source, job.block_ids, job.num_tokens, groups)
        assert is_on, "a prompt whose source has ended has left the queue"
        sources = [source for source, _ in job.copies]
        job.pins.append(parts.holds.hold((*job.block_ids, *sources)))
        if not job.only_first_token:
            job.layers = frozenset(group[-1] for group in groups)
        job.events.put_nowait(Started(queue_s=parts.clock.now_s() - job.arrived_at_s))
        self._tell_hits(job)
        return started

    def _tell_hits(self, job: PrefillJob) -> None:
        """What is copied is in its place only when the step has begun."""
        size = self._parts.blocks.block_size
        if (num_tokens := job.num_hit_tokens // size * size) and job.source is not None:
            for layer in range(self._parts.layout.num_layers):
                self._parts.book.progress(job.source, layer, num_tokens)

    def _tell(
        self, job: PrefillJob, token_id: int, logprobs: TokenLogprobs | None, outcome: StepOutcome
    ) -> None:
        began_at_s = outcome.began_at_s if job.began_at_s is None else job.began_at_s
        timing = PrefillTiming(
            queue_s=began_at_s - job.arrived_at_s,
            compute_s=outcome.ended_at_s - began_at_s,
            num_hit_tokens=job.num_hit_tokens - job.num_fetched_tokens,
            num_fetched_tokens=job.num_fetched_tokens,
        )
        sampled = Sampled(
            position=job.position,
            token_id=token_id,
            finish_reason=finish_reason(job.work.stop, job.position + 1, token_id),
            timing=timing,
            logprobs=logprobs,
        )
        job.events.put_nowait(sampled)

    def _sampled(
        self,
        job: PrefillJob,
        token_id: int,
        logprobs: TokenLogprobs | None,
        sampled_at_s: float,
    ) -> None:
        assert job.source is not None
        reason = finish_reason(job.work.stop, job.position + 1, token_id)
        self._leave_steps(job)
        token = FirstToken(
            token_id=token_id,
            position=job.position,
            finish_reason=reason,
            sampled_at_s=sampled_at_s,
            logprobs=logprobs,
        )
        self._parts.book.finished(job.source, token)
        if job.only_first_token or reason is not None:
            self.close(job)

    def _ended(self, job: PrefillJob, source: Source) -> None:
        """The book has released the blocks, whatever the reason."""
        self._jobs.pop(job, None)
        self._leave_steps(job)
        self.blocks.ended(job)
        job.events.put_nowait(Ended(outcome=source.outcome or Outcome.ABORTED))
        logger.info("prefill ended handoff_id=%s outcome=%s", job.work.handoff_id, source.outcome)
        self._parts.work.set()

    def _leave_steps(self, job: PrefillJob) -> None:
        self._scheduler.remove(job)
        self.blocks.leave_steps(job)
        pins, job.pins = job.pins, []
        self._parts.holds.let_go(pins)
