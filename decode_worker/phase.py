"""Decode as the step loop sees it: every running answer gets one token per step."""

import asyncio
from typing import Protocol

from core.blocks import BlockState
from decode_worker.job import Answer
from decode_worker.scheduler import DecodeScheduler
from worker_host.blocks import InstanceBlocks
from worker_host.holds import StepHolds
from worker_host.phase import PhaseLoad, PhaseWork, StepOutcome


class Reporter(Protocol):
    """Who is told what became of answers."""

    def sampled(self, answer: Answer, token_id: int, outcome: StepOutcome) -> None:
        """A running answer has one more token; it may be ended now."""
        ...

    def preempted(self, answer: Answer) -> None:
        """An answer was taken out of the batch to make room; it must be ended now."""
        ...

    def step_absorbed(self) -> None:
        """All tokens of a step were told."""
        ...

    @property
    def num_waiting(self) -> int:
        """Handoffs that have not committed."""
        ...


class DecodePhase:
    """The running batch and its blocks."""

    def __init__(
        self,
        *,
        blocks: InstanceBlocks,
        holds: StepHolds,
        max_running: int,
        work: asyncio.Event,
        reporter: Reporter,
    ) -> None:
        self._blocks = blocks
        self._holds = holds
        self._scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running)
        self._work = work
        self._reporter = reporter
        self._batch: list[Answer] = []

    def join(self, answer: Answer) -> None:
        """Its KV is verified: it decodes from the next step on."""
        answer.pins.append(self._holds.hold(answer.block_ids))
        self._scheduler.join(answer)
        self._work.set()

    def leave(self, answer: Answer) -> None:
        """It has ended: its blocks return, at the latest with the running step."""
        self._scheduler.leave(answer)
        block_ids, answer.block_ids = answer.block_ids, []
        pins, answer.pins = answer.pins, []
        self._blocks.release(block_ids, BlockState.OWNED)
        self._holds.let_go(pins)
        self._work.set()

    @property
    def num_running(self) -> int:
        """Answers in the batch."""
        return len(self._scheduler.running)

    @property
    def num_answers(self) -> int:
        """Answers in the batch or waiting for a place in it."""
        return self._scheduler.num_answers

    def schedule(self, num_others: int) -> PhaseWork:
        """One token of every running answer."""
        del num_others  # decode comes first
        self._batch = self._scheduler.schedule(self._grow, self._reporter.preempted)
        return PhaseWork([answer.entry() for answer in self._batch])

    def layer_written(self, layer: int) -> None:
        """Nobody reads decode's KV."""

    def absorb(self, outcome: StepOutcome) -> None:
        """Tell the tokens of all answers that have not ended meanwhile."""
        for answer, token_id in zip(self._batch, outcome.token_ids, strict=True):
            if answer.block_ids and token_id is not None:
                answer.num_kv_tokens += 1
                answer.output_token_ids.append(token_id)
                self._reporter.sampled(answer, token_id, outcome)
        self._batch = []
        self._reporter.step_absorbed()

    def load(self) -> PhaseLoad:
        """Running answers, and handoffs on their way in."""
        running = self._scheduler.running
        num_waiting = self._reporter.num_waiting
        return PhaseLoad(
            num_incoming=num_waiting,
            num_decoding=self._scheduler.num_answers,
            num_context_tokens=sum(answer.num_kv_tokens for answer in running),
            num_answers=self._scheduler.num_answers,
        )

    def _grow(self, answer: Answer) -> bool:
        if not self._blocks.num_free:
            return False
        block_ids = self._blocks.allocate(1, BlockState.OWNED)
        answer.pins.append(self._holds.hold(block_ids))
        answer.block_ids.extend(block_ids)
        return True
