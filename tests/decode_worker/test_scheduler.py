"""Continuous batching, and who makes room."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler


@dataclass(eq=False)
class Answer:
    """One that decodes."""

    arrived_at_s: float
    num_tokens: int = 0
    num_blocks: int = 1

    @property
    def needs_block(self) -> bool:
        """Four tokens a block."""
        return self.num_tokens >= 4 * self.num_blocks


class Memory:
    """Counts blocks."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free
        self.preempted: list[Answer] = []

    def grow(self, answer: Answer) -> bool:
        """Take one more."""
        if not self.num_free:
            return False
        self.num_free -= 1
        answer.num_blocks += 1
        return True

    def preempt(self, answer: Answer) -> None:
        """Give all back."""
        self.num_free += answer.num_blocks
        self.preempted.append(answer)


def test_whoever_joins_runs_until_it_leaves() -> None:
    scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running=2)
    memory = Memory(9)
    a, b, c = answers = [Answer(float(i)) for i in range(3)]
    for answer in answers:
        scheduler.join(answer)
    assert scheduler.schedule(memory.grow, memory.preempt) == [a, b]
    scheduler.leave(a)
    assert scheduler.schedule(memory.grow, memory.preempt) == [b, c]
    assert scheduler.num_answers == 2


def test_the_latest_arrived_makes_room() -> None:
    scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running=3)
    memory = Memory(0)
    latest, oldest, middle = (Answer(at_s, num_tokens=4) for at_s in (9.0, 1.0, 5.0))
    for answer in (latest, oldest, middle):
        scheduler.join(answer)
    assert scheduler.schedule(memory.grow, memory.preempt) == [oldest]
    assert memory.preempted == [latest, middle]


def test_one_that_waits_for_a_place_goes_first() -> None:
    scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running=1)
    memory = Memory(0)
    running, waiting = Answer(1.0, num_tokens=4), Answer(2.0)
    scheduler.join(running)
    scheduler.join(waiting)
    assert scheduler.schedule(memory.grow, memory.preempt) == [running]
    assert memory.preempted == [waiting]


def test_the_last_one_waits_for_memory_and_is_never_preempted() -> None:
    scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running=4)
    memory = Memory(0)
    only = Answer(1.0, num_tokens=4)
    scheduler.join(only)
    assert scheduler.schedule(memory.grow, memory.preempt) == []
    assert not memory.preempted
    memory.num_free = 1
    assert scheduler.schedule(memory.grow, memory.preempt) == [only]


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=12),
    max_running=st.integers(1, 6),
)
def test_laws(arrivals: list[tuple[int, int]], max_running: int) -> None:
    """Memory adds up, the batch is bounded, every step progresses, everyone ends."""
    num_blocks = 12
    scheduler: DecodeScheduler[Answer] = DecodeScheduler(max_running)
    memory = Memory(num_blocks)
    wanted: dict[Answer, int] = {}
    num_steps = 0
    coming = sorted(arrivals)
    while coming or scheduler.num_answers:
        num_steps += 1
        while coming and memory.num_free and coming[0][0] < num_steps:
            arrived_at_s, length = coming.pop(0)
            memory.num_free -= 1
            answer = Answer(float(arrived_at_s))
            wanted[answer] = length
            scheduler.join(answer)
        batch = scheduler.schedule(memory.grow, memory.preempt)
        assert len(batch) <= max_running
        assert bool(batch) == bool(scheduler.num_answers)
        for answer in batch:
            assert not answer.needs_block
            answer.num_tokens += 1
            if answer.num_tokens == wanted[answer]:
                scheduler.leave(answer)
                memory.num_free += answer.num_blocks
    assert memory.num_free == num_blocks
