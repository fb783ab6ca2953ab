"""Continuous batching, and who makes room."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from policy.fairness import Claim, ServedTokens


@dataclass(eq=False)
class Answer:
    """One that decodes."""

    arrived_at_s: float
    num_tokens: int = 0
    num_blocks: int = 1
    priority: int = 0
    tenant: str = ""

    @property
    def claim(self) -> Claim:
        """Of its request."""
        return Claim(tenant=self.tenant, priority=self.priority, arrived_at_s=self.arrived_at_s)

    @property
    def needs_block(self) -> bool:
        """Four tokens a block."""
        return self.num_tokens >= 4 * self.num_blocks


class Memory:
    """Counts blocks."""

    def __init__(self, num_free: int, *, is_slow: bool = False) -> None:
        self.num_free = num_free
        self.num_coming = 0
        self.is_stuck = False
        self._is_slow = is_slow
        self.preempted: list[Answer] = []

    def grow(self, answer: Answer) -> bool:
        """Take one more."""
        if not self.num_free:
            return False
        self.num_free -= 1
        answer.num_blocks += 1
        return True

    def preempt(self, answer: Answer) -> None:
        """Give all back, at once or when `arrive` says so."""
        self.num_coming += answer.num_blocks
        self.preempted.append(answer)
        if not self._is_slow:
            self.arrive()

    def arrive(self) -> None:
        """What was coming is there."""
        self.num_free += self.num_coming
        self.num_coming = 0


def scheduler_of(max_running: int, served: ServedTokens | None = None) -> DecodeScheduler[Answer]:
    """Empty."""
    return DecodeScheduler(max_running, ageing_s=10.0, served=served or ServedTokens())


def test_whoever_joins_runs_until_it_leaves() -> None:
    scheduler = scheduler_of(2)
    memory = Memory(9)
    a, b, c = answers = [Answer(float(i)) for i in range(3)]
    for answer in answers:
        scheduler.join(answer)
    assert scheduler.schedule(0.0, memory) == [a, b]
    scheduler.leave(a)
    assert scheduler.schedule(0.0, memory) == [b, c]
    assert scheduler.num_answers == 2


def test_the_latest_arrived_makes_room() -> None:
    scheduler = scheduler_of(3)
    memory = Memory(0)
    latest, oldest, middle = (Answer(at_s, num_tokens=4) for at_s in (9.0, 1.0, 5.0))
    for answer in (latest, oldest, middle):
        scheduler.join(answer)
    assert scheduler.schedule(0.0, memory) == [oldest]
    assert memory.preempted == [latest, middle]


def test_one_that_waits_for_a_place_goes_first() -> None:
    scheduler = scheduler_of(1)
    memory = Memory(0)
    running, waiting = Answer(1.0, num_tokens=4), Answer(2.0)
    scheduler.join(running)
    scheduler.join(waiting)
    assert scheduler.schedule(0.0, memory) == [running]
    assert memory.preempted == [waiting]


def test_the_last_one_waits_for_memory_and_is_never_preempted() -> None:
    scheduler = scheduler_of(4)
    memory = Memory(0)
    only = Answer(1.0, num_tokens=4)
    scheduler.join(only)
    assert scheduler.schedule(0.0, memory) == []
    assert not memory.preempted
    memory.num_free = 1
    assert scheduler.schedule(0.0, memory) == [only]


def test_the_lowest_priority_makes_room_however_early_it_came() -> None:
    scheduler = scheduler_of(3)
    memory = Memory(0)
    low, high, higher = (Answer(float(i), num_tokens=4, priority=i) for i in range(3))
    for answer in (low, high, higher):
        scheduler.join(answer)
    # Its one block is enough for one of the two; the other's makes room for the last.
    assert scheduler.schedule(0.0, memory) == [higher]
    assert memory.preempted == [low, high]


def test_nobody_leaves_for_what_comes_anyway() -> None:
    scheduler = scheduler_of(3)
    memory = Memory(0, is_slow=True)
    first, second, third = (Answer(float(i), num_tokens=4 * (i < 2)) for i in range(3))
    for answer in (first, second, third):
        scheduler.join(answer)
    third.num_blocks = 2
    assert scheduler.schedule(0.0, memory) == []
    assert memory.preempted == [third], "two blocks come, for two who wait"
    assert scheduler.schedule(0.0, memory) == []
    memory.arrive()
    assert scheduler.schedule(0.0, memory) == [first, second]


def test_one_more_leaves_when_too_little_comes() -> None:
    scheduler = scheduler_of(4)
    memory = Memory(0, is_slow=True)
    answers = [Answer(float(i), num_tokens=4) for i in range(4)]
    for answer in answers:
        scheduler.join(answer)
    assert scheduler.schedule(0.0, memory) == []
    assert memory.preempted == [answers[3], answers[2]], "a block each, for the other two"
    memory.arrive()
    assert scheduler.schedule(0.0, memory) == answers[:2]


def test_places_are_given_by_turn() -> None:
    served = ServedTokens()
    served.join("greedy")
    served.charge("greedy", 1.0)
    scheduler = scheduler_of(2, served)
    greedy, modest, urgent = (
        Answer(0.0, tenant="greedy"),
        Answer(1.0, tenant="modest"),
        Answer(2.0, tenant="greedy", priority=1),
    )
    for answer in (greedy, modest, urgent):
        scheduler.join(answer)
    assert scheduler.schedule(2.0, Memory(0)) == [urgent, modest]


def test_the_last_one_leaves_when_others_wait_for_its_blocks() -> None:
    scheduler = scheduler_of(4)
    memory = Memory(0)
    memory.is_stuck = True
    only = Answer(1.0, num_tokens=4)
    scheduler.join(only)
    assert scheduler.schedule(0.0, memory) == []
    assert memory.preempted == [only]


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=12),
    max_running=st.integers(1, 6),
)
def test_laws(arrivals: list[tuple[int, int]], max_running: int) -> None:
    """Memory adds up, the batch is bounded, every step progresses, everyone ends."""
    num_blocks = 12
    scheduler = scheduler_of(max_running)
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
        batch = scheduler.schedule(0.0, memory)
        assert len(batch) <= max_running
        assert bool(batch) == bool(scheduler.num_answers)
        for answer in batch:
            assert not answer.needs_block
            answer.num_tokens += 1
            if answer.num_tokens == wanted[answer]:
                scheduler.leave(answer)
                memory.num_free += answer.num_blocks
    assert memory.num_free == num_blocks
