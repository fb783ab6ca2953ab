"""Admission: by turn, bounded, fair to tenants, no place lost whatever happens while waiting."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack

import pytest

from core.clock import ManualClock
from core.errors import DeadlinePassed, Draining, Saturated
from policy.fairness import Claim
from router.admission import Admission

BOUND_S = 5.0


class FakeRoom:
    """Of the instances: so many more."""

    def __init__(self, num_free: int = 1_000_000) -> None:
        self.num_free = num_free

    def has_room(self) -> bool:
        return self.num_free > 0

    def taken(self) -> None:
        self.num_free -= 1


def admission_of(
    max_running: int = 1,
    max_queued: int = 8,
    clock: ManualClock | None = None,
    room: FakeRoom | None = None,
) -> Admission:
    return Admission(
        max_running=max_running,
        max_queued=max_queued,
        ageing_s=10.0,
        clock=clock or ManualClock(),
        room=room or FakeRoom(),
    )


class Visit:
    """One request that stays until told to leave."""

    def __init__(
        self,
        admission: Admission,
        tenant: str = "",
        *,
        priority: int = 0,
        timeout_s: float = BOUND_S,
        cost: float = 0.0,
    ) -> None:
        self.tenant = tenant
        self.claim = Claim(tenant=tenant, priority=priority, arrived_at_s=0.0)
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(admission, timeout_s, cost))

    async def _run(self, admission: Admission, timeout_s: float, cost: float) -> None:
        async with admission.admit(timeout_s, self.claim, cost=cost):
            self.inside.set()
            await self.leave.wait()

    async def until_inside(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.inside.wait()

    async def end(self) -> None:
        self.leave.set()
        async with asyncio.timeout(BOUND_S):
            await self.task


async def end_all(visits: Iterable[Visit]) -> None:
    """In whichever order they are admitted."""
    left = list(visits)
    for visit in left:
        visit.leave.set()
    for visit in left:
        await visit.end()


async def test_first_come_first_served() -> None:
    admission = admission_of(max_queued=2)
    first, second, third = (Visit(admission) for _ in range(3))
    await first.until_inside()
    assert (admission.num_running, admission.num_queued) == (1, 2)
    with pytest.raises(Saturated, match="1 requests run and 2 wait"):
        admission.check("")
    await first.end()
    await second.until_inside()
    assert not third.inside.is_set()
    await second.end()
    await third.end()
    assert admission.num_running == 0
    assert admission.idle.is_set()


async def test_higher_priority_goes_first() -> None:
    admission = admission_of()
    first, low, high = (Visit(admission, priority=priority) for priority in (0, 0, 1))
    await first.until_inside()
    await first.end()
    await high.until_inside()
    assert not low.inside.is_set()
    await high.end()
    await low.end()


async def test_waiting_raises_priority() -> None:
    clock = ManualClock()
    admission = admission_of(clock=clock)
    first, low, high = (Visit(admission, priority=priority) for priority in (0, 0, 1))
    await first.until_inside()
    clock.advance(10.0)
    await first.end()
    await low.until_inside()
    assert not high.inside.is_set()
    await low.end()
    await high.end()


async def test_who_waits_too_long_or_leaves_takes_no_place() -> None:
    admission = admission_of()
    first = Visit(admission)
    await first.until_inside()
    with pytest.raises(DeadlinePassed):
        await Visit(admission, timeout_s=0.001).task
    gone = Visit(admission)
    await asyncio.sleep(0)
    gone.task.cancel()
    await asyncio.wait({gone.task})
    last = Visit(admission)
    await first.end()
    await last.until_inside()
    await last.end()
    assert (admission.num_running, admission.num_queued) == (0, 0)


async def test_a_place_given_to_one_who_is_just_cancelled_goes_on() -> None:
    admission = admission_of()
    first = Visit(admission)
    await first.until_inside()
    second, third = Visit(admission), Visit(admission)
    await asyncio.sleep(0)
    first.leave.set()
    # The place is handed over in the same turn of the loop as the cancel.
    first.task.add_done_callback(lambda _: second.task.cancel())
    await third.until_inside()
    await third.end()
    await asyncio.wait({second.task})
    assert admission.num_running == 0


async def test_drain_serves_who_waits_and_refuses_who_comes() -> None:
    admission = admission_of()
    first, second = Visit(admission), Visit(admission)
    await first.until_inside()
    admission.drain()
    with pytest.raises(Draining):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.admit(BOUND_S, first.claim))
    await first.end()
    await second.until_inside()
    assert not admission.idle.is_set()
    await second.end()
    assert admission.idle.is_set()


FULL = [
    # id                                          max  who waits  comes  who gives way
    ("one tenant alone is refused", 4, "aaaa", "a", None),
    ("a newcomer takes the newest of a flood", 4, "aaaa", "b", 3),
    ("and again up to its share", 4, "aaab", "b", 2),
    ("but no more than that", 4, "aabb", "b", None),
    ("who has most gives way", 6, "aabbbb", "c", 5),
    ("though others came later", 6, "bbbbaa", "c", 3),
    ("a flood cannot grow against the small", 4, "aaab", "a", None),
    ("shares below one are nobody's", 2, "ab", "c", None),
    ("a share that is no whole number", 5, "aaaab", "b", 3),
    ("is not exceeded", 5, "aaabb", "b", None),
]


@pytest.mark.parametrize(
    ("max_queued", "waiting", "comes", "want"), [c[1:] for c in FULL], ids=[c[0] for c in FULL]
)
async def test_a_full_line(max_queued: int, waiting: str, comes: str, want: int | None) -> None:
    admission = admission_of(max_queued=max_queued)
    first = Visit(admission)
    await first.until_inside()
    visits = [Visit(admission, tenant) for tenant in waiting]
    await asyncio.sleep(0)
    newcomer = Visit(admission, comes)
    async with asyncio.timeout(BOUND_S):
        refused = newcomer if want is None else visits[want]
        with pytest.raises(Saturated) as caught:
            await refused.task
    assert caught.value.retry_after_s > 0
    assert admission.num_queued == max_queued
    await end_all(visit for visit in (first, *visits, newcomer) if visit is not refused)
    assert (admission.num_running, admission.num_queued) == (0, 0)
    assert admission.idle.is_set()


async def test_who_must_give_way_and_leaves_at_once_is_no_trouble() -> None:
    admission = admission_of(max_queued=2)
    first, kept, gone = (Visit(admission, "a") for _ in range(3))
    await first.until_inside()
    gone.task.cancel()
    newcomer = Visit(admission, "b")
    await asyncio.wait({gone.task})
    assert gone.task.cancelled()
    await end_all((first, newcomer, kept))
    assert admission.idle.is_set()


@pytest.mark.parametrize(("cost_a", "cost_b"), [(10, 10), (40, 5), (3, 30)])
async def test_a_flood_gets_no_more_than_its_neighbour(cost_a: int, cost_b: int) -> None:
    """The law: while both have work, both are served alike, whoever sends ten times as much."""
    admission = admission_of(max_running=4, max_queued=44)
    costs = {"a": cost_a, "b": cost_b}
    served: Counter[str] = Counter()

    def arrive(tenant: str) -> Visit:
        return Visit(admission, tenant, cost=costs[tenant])

    visits = [arrive(tenant) for tenant in "a" * 40 + "b" * 4]
    for _ in range(400):
        await asyncio.sleep(0)
        done = next(visit for visit in visits if visit.inside.is_set())
        visits.remove(done)
        # Half with the place, as prompts are, half as it runs.
        admission.charge(done.tenant, costs[done.tenant])
        served[done.tenant] += 2 * costs[done.tenant]
        visits.append(arrive(done.tenant))
        await done.end()
    assert max(served.values()) <= 1.3 * min(served.values())
    for visit in visits:
        visit.task.cancel()
    await asyncio.wait({visit.task for visit in visits})
    assert admission.idle.is_set()


async def test_instances_without_room_let_nobody_more_in() -> None:
    room = FakeRoom(2)
    admission = admission_of(max_running=9, room=room)
    visits = [Visit(admission) for _ in range(4)]
    await visits[1].until_inside()
    assert (admission.num_running, admission.num_queued) == (2, 2)
    # Somebody left, and the instances have room for one: a place for one.
    room.num_free = 1
    await visits[0].end()
    await visits[2].until_inside()
    assert (admission.num_running, admission.num_queued) == (2, 1)
    # Whoever comes is the occasion to look again, and does not pass who waits.
    room.num_free = 1
    late = Visit(admission)
    await visits[3].until_inside()
    assert admission.num_queued == 1
    room.num_free = 9
    for visit in (*visits[1:], late):
        await visit.end()
    assert admission.idle.is_set()


async def test_one_runs_even_where_there_is_no_room() -> None:
    admission = admission_of(max_running=9, room=FakeRoom(0))
    first, second = Visit(admission), Visit(admission)
    await first.until_inside()
    assert admission.num_queued == 1
    await first.end()
    await second.until_inside()
    await second.end()


async def test_who_has_waited_long_enough_is_refused_with_a_hint() -> None:
    admission = admission_of()
    first = Visit(admission)
    await first.until_inside()
    with pytest.raises(Saturated) as refused:
        async with admission.admit(BOUND_S, first.claim, patience_s=0.001):
            pass
    assert refused.value.retry_after_s > 0
    assert admission.num_queued == 0
    await first.end()


async def test_the_wait_is_told_from_how_long_others_stayed() -> None:
    clock = ManualClock()
    admission = admission_of(max_running=2, clock=clock)
    assert admission.line_wait_s == 0.0
    first, second = Visit(admission), Visit(admission)
    await second.until_inside()
    clock.advance(3.0)
    await first.end()
    third, fourth = Visit(admission), Visit(admission)
    await third.until_inside()
    # One waits; the next one is second in line, behind two that stay 3 s each.
    assert admission.num_queued == 1
    assert admission.line_wait_s == 3.0
    for visit in (second, third, fourth):
        await visit.end()
