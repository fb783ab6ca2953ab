"""Which answers the next step goes on with, and who makes room when memory is short."""

from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from policy.fairness import Claim, FairQueue, ServedTokens


class Answer(Protocol):
    """What the scheduler must know of a request that decodes."""

    @property
    def claim(self) -> Claim: ...
    @property
    def needs_block(self) -> bool: ...


A = TypeVar("A", bound=Answer)
A_contra = TypeVar("A_contra", bound=Answer, contravariant=True)


class Memory(Protocol[A_contra]):
    """Where answers grow, and whence they are sent."""

    @property
    def num_coming(self) -> int:
        """Blocks that will be free without anybody's leaving."""
        ...

    @property
    def is_stuck(self) -> bool:
        """Whoever has the other blocks waits for those of the last answer."""
        ...

    def grow(self, answer: A_contra) -> bool:
        """Take its next block; False: there is none."""
        ...

    def preempt(self, answer: A_contra) -> None:
        """It has left the scheduler to make room: at once, or among those that are coming."""
        ...


class DecodeScheduler(Generic[A]):
    """Continuous batching: whoever runs takes part in every step until it leaves."""

    def __init__(self, max_running: int, *, ageing_s: float, served: ServedTokens) -> None:
        self._max_running = max_running
        self._waiting: FairQueue[A] = FairQueue(ageing_s=ageing_s, served=served)
        # A dict for its order: answers leave from anywhere.
        self._running: dict[A, None] = {}

    @property
    def running(self) -> Collection[A]:
        """The batch, in order of joining."""
        return self._running.keys()

    @property
    def num_answers(self) -> int:
        """Running, or waiting for a place in the batch."""
        return len(self._running) + len(self._waiting)

    @property
    def num_places(self) -> int:
        """In the batch, beyond those for whom there is one already."""
        return max(0, self._max_running - self.num_answers)

    def join(self, answer: A) -> None:
        """Its KV is here: it decodes from the first step that has a place for it."""
        self._waiting.add(answer, answer.claim)

    def leave(self, answer: A) -> None:
        """It has ended; nothing happens when it is not here."""
        self._running.pop(answer, None)
        self._waiting.remove(answer)

    def schedule(self, now_s: float, memory: Memory[A]) -> list[A]:
        """The batch. When there is no block for an answer, another is preempted: of the lowest
        priority, the latest arrived. Not when enough blocks come anyway: then it sits this step
        out. One always stays, unless nobody could go on then.
        """
        self._fill(now_s)
        batch: dict[A, None] = {}
        sitting: set[A] = set()
        for answer in list(self._running):
            while answer in self._running and answer.needs_block and not memory.grow(answer):
                is_last = self.num_answers == 1 and not memory.is_stuck
                if is_last or memory.num_coming > len(sitting):
                    sitting.add(answer)
                    break
                victim = max([*self._waiting, *self._running], key=_dispensability)
                self.leave(victim)
                batch.pop(victim, None)
                sitting.discard(victim)
                memory.preempt(victim)
            if answer in self._running and answer not in sitting:
                batch[answer] = None
        return list(batch)

    def _fill(self, now_s: float) -> None:
        num_places = self._max_running - len(self._running)
        for answer in self._waiting.in_turn(now_s):
            if num_places <= 0:
                return
            num_places -= 1
            self._waiting.remove(answer)
            self._running[answer] = None


def _dispensability(answer: Answer) -> tuple[int, float]:
    # Its priority as it came: ageing is for those who wait.
    return -answer.claim.priority, answer.claim.arrived_at_s
