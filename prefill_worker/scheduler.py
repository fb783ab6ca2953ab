"""Which prompt tokens the next step computes: started prompts first, then whose turn it is."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

from core.errors import Saturated
from policy.fairness import PROMPT_TOKEN_COST, Claim, FairQueue, ServedTokens

MAX_PASSED_OVER = 64
"""Prompts of one step that wait for another's prefix. Those behind them wait for the next step:
looking at a thousand would take longer than a step may."""
MAX_HIT_TOKENS = 8192
"""Of the prompts that start in one step. Hits are no tokens of the budget, but sharing their blocks
takes the event loop 2 to 5 µs each, and every chunk attends to all of its own."""


class Start(Enum):
    """What became of a job whose turn it was."""

    STARTED = auto()
    PASSED_OVER = auto()
    """Another job computes what it needs: those behind it go on."""
    NO_ROOM = auto()
    """Those behind it wait too, or a large prompt would wait for ever."""


class Prompt(Protocol):
    """What the scheduler must know of a job."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed(self) -> int: ...
    @property
    def claim(self) -> Claim: ...


P = TypeVar("P", bound=Prompt)


@dataclass(frozen=True, slots=True)
class Chunk(Generic[P]):
    """Part of one prompt, computed in one step."""

    job: P
    tokens: range

    @property
    def is_last(self) -> bool:
        """It completes the prompt: a token is sampled."""
        return self.tokens.stop == self.job.num_tokens


class PrefillScheduler(Generic[P]):
    """Jobs wait for their turn, then are computed in the order in which they started."""

    def __init__(self, max_queued: int, *, ageing_s: float) -> None:
        self._max_queued = max_queued
        self._served = ServedTokens()
        self._queue: FairQueue[P] = FairQueue(ageing_s=ageing_s, served=self._served)
        self._started: list[P] = []

    @property
    def num_jobs(self) -> int:
        """Queued or being computed."""
        return len(self._queue) + len(self._started)

    @property
    def num_pending_tokens(self) -> int:
        """Accepted and not yet computed."""
        jobs = [*self._queue, *self._started]
        return sum(job.num_tokens - job.num_computed for job in jobs)

    def add(self, job: P) -> None:
        """Queue a job; raises Saturated when the queue is full."""
        if len(self._queue) >= self._max_queued:
            raise Saturated(f"{len(self._queue)} requests wait for prefill, limit as many")
        self._queue.add(job, job.claim)
        self._served.join(job.claim.tenant)

    def remove(self, job: P) -> None:
        """Forget a job, wherever it is; nothing happens when it is not here."""
        if job in self._started:
            self._started.remove(job)
        elif not self._queue.remove(job):
            return
        self._served.leave(job.claim.tenant)

    def schedule(
        self, max_tokens: int, now_s: float, start: Callable[[P], Start]
    ) -> list[Chunk[P]]:
        """At most `max_tokens` tokens. `start` takes the memory of a whole prompt, or says why
        it does not."""
        chunks: list[Chunk[P]] = []
        for job in self._started:
            max_tokens -= self._cut(job, max_tokens, chunks)
        if max_tokens > 0:
            self._begin(max_tokens, now_s, start, chunks)
        return chunks

    def _begin(
        self, max_tokens: int, now_s: float, start: Callable[[P], Start], chunks: list[Chunk[P]]
    ) -> None:
        num_passed = num_hit_tokens = 0
        for job in self._queue.in_turn(now_s):
            outcome = start(job)
            if outcome is Start.STARTED:
                self._queue.remove(job)
                self._started.append(job)
                num_hit_tokens += job.num_computed
                max_tokens -= self._cut(job, max_tokens, chunks)
            num_passed += outcome is Start.PASSED_OVER
            is_enough = num_passed >= MAX_PASSED_OVER or num_hit_tokens >= MAX_HIT_TOKENS
            if outcome is Start.NO_ROOM or not max_tokens or is_enough:
                return

    def _cut(self, job: P, max_tokens: int, chunks: list[Chunk[P]]) -> int:
        num_tokens = min(max_tokens, job.num_tokens - job.num_computed)
        if num_tokens > 0:
            chunks.append(Chunk(job, range(job.num_computed, job.num_computed + num_tokens)))
            self._served.charge(job.claim.tenant, PROMPT_TOKEN_COST * num_tokens)
        return num_tokens
