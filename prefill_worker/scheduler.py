"""Which prompt tokens the next step computes: first come, first served, in chunks."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from core.errors import Saturated


class Prompt(Protocol):
    """What the scheduler must know of a job."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed(self) -> int: ...


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
    """Jobs wait in order of arrival, then are computed in that order."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queued: deque[P] = deque()
        self._started: list[P] = []

    @property
    def num_jobs(self) -> int:
        """Queued or being computed."""
        return len(self._queued) + len(self._started)

    @property
    def num_pending_tokens(self) -> int:
        """Accepted and not yet computed."""
        jobs = [*self._queued, *self._started]
        return sum(job.num_tokens - job.num_computed for job in jobs)

    def add(self, job: P) -> None:
        """Queue a job; raises Saturated when the queue is full."""
        if len(self._queued) >= self._max_queued:
            raise Saturated(f"{len(self._queued)} requests wait for prefill, limit as many")
        self._queued.append(job)

    def remove(self, job: P) -> None:
        """Forget a job, wherever it is; nothing happens when it is not here."""
        if job in self._started:
            self._started.remove(job)
        elif job in self._queued:
            self._queued.remove(job)

    def schedule(self, max_tokens: int, start: Callable[[P], bool]) -> list[Chunk[P]]:
        """At most `max_tokens` tokens. `start` takes the memory of the whole next prompt, or says
        that there is no room: then everything behind it waits too.
        """
        chunks: list[Chunk[P]] = []
        for job in self._started:
            max_tokens -= _cut(job, max_tokens, chunks)
        while max_tokens > 0 and self._queued and start(self._queued[0]):
            job = self._queued.popleft()
            self._started.append(job)
            max_tokens -= _cut(job, max_tokens, chunks)
        return chunks


def _cut(job: P, max_tokens: int, chunks: list[Chunk[P]]) -> int:
    num_tokens = min(max_tokens, job.num_tokens - job.num_computed)
    if num_tokens > 0:
        chunks.append(Chunk(job, range(job.num_computed, job.num_computed + num_tokens)))
    return num_tokens
