"""Admission: in order of arrival, bounded, no place lost whatever happens while waiting."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from core.errors import DeadlinePassed, Draining, Saturated
from router.admission import Admission

BOUND_S = 5.0


class Visit:
    """One request that stays until told to leave."""

    def __init__(self, admission: Admission, timeout_s: float = BOUND_S) -> None:
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(admission, timeout_s))

    async def _run(self, admission: Admission, timeout_s: float) -> None:
        async with admission.admit(timeout_s):
            self.inside.set()
            await self.leave.wait()

    async def until_inside(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.inside.wait()

    async def end(self) -> None:
        self.leave.set()
        async with asyncio.timeout(BOUND_S):
            await self.task


async def test_first_come_first_served() -> None:
    admission = Admission(max_running=1, max_queued=2)
    first, second, third = (Visit(admission) for _ in range(3))
    await first.until_inside()
    assert (admission.num_running, admission.num_queued) == (1, 2)
    with pytest.raises(Saturated, match="1 requests run and 2 wait"):
        admission.check()
    await first.end()
    await second.until_inside()
    assert not third.inside.is_set()
    await second.end()
    await third.end()
    assert admission.num_running == 0
    assert admission.idle.is_set()


async def test_who_waits_too_long_or_leaves_takes_no_place() -> None:
    admission = Admission(max_running=1, max_queued=8)
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
    admission = Admission(max_running=1, max_queued=8)
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
    admission = Admission(max_running=1, max_queued=8)
    first, second = Visit(admission), Visit(admission)
    await first.until_inside()
    admission.drain()
    with pytest.raises(Draining):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.admit(BOUND_S))
    await first.end()
    await second.until_inside()
    assert not admission.idle.is_set()
    await second.end()
    assert admission.idle.is_set()
