"""Which answers the next step goes on with, and who makes room when memory is short."""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Generic, Protocol, TypeVar


class Answer(Protocol):
    """What the scheduler must know of a request that decodes."""

    @property
    def arrived_at_s(self) -> float: ...
    @property
    def needs_block(self) -> bool: ...


A = TypeVar("A", bound=Answer)


class DecodeScheduler(Generic[A]):
    """Continuous batching: whoever has joined takes part in every step until it leaves."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        # Dicts for their order: answers leave from anywhere.
        self._waiting: dict[A, None] = {}
        self._running: dict[A, None] = {}

    @property
    def running(self) -> Collection[A]:
        """The batch, in order of joining."""
        return self._running.keys()

    @property
    def num_answers(self) -> int:
        """Running, or waiting for a place in the batch."""
        return len(self._running) + len(self._waiting)

    def join(self, answer: A) -> None:
        """Its KV is here: it decodes from the next step with a free place on."""
        self._waiting[answer] = None

    def leave(self, answer: A) -> None:
        """It has ended; nothing happens when it is not here."""
        self._running.pop(answer, None)
        self._waiting.pop(answer, None)

    def schedule(self, grow: Callable[[A], bool], preempt: Callable[[A], None]) -> list[A]:
        """The batch. `grow` takes the next block of an answer, or says that there is none; then
        `preempt` ends the latest arrived, so that the others progress. One always stays.
        """
        self._fill()
        batch: dict[A, None] = {}
        for answer in list(self._running):
            while answer in self._running and answer.needs_block and not grow(answer):
                if self.num_answers == 1:
                    return list(batch)
                victim = max([*self._waiting, *self._running], key=_arrival)
                self.leave(victim)
                batch.pop(victim, None)
                preempt(victim)
            if answer in self._running:
                batch[answer] = None
        return list(batch)

    def _fill(self) -> None:
        num_places = max(0, self._max_running - len(self._running))
        for answer in list(islice(self._waiting, num_places)):
            del self._waiting[answer]
            self._running[answer] = None


def _arrival(answer: Answer) -> float:
    return answer.arrived_at_s
