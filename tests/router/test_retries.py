"""Retries over all requests: first come, first served, and every one of them in the end."""

import asyncio
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from core.clock import ManualClock
from core.errors import RetriesSpent
from core.ids import HandoffId
from router.retries import Retries
from tests.router.conftest import OpenStage
from tests.router.test_recovery import ask, gate_token

NUM_FREE = 100


def ids(num: int) -> list[HandoffId]:
    return [HandoffId(f"{i}/0") for i in range(num)]


def spend(retries: Retries, num: int) -> None:
    for _ in range(num):
        retries.placed(again=True)


def test_who_waits_longest_goes_first() -> None:
    retries = Retries(clock := ManualClock())
    spend(retries, NUM_FREE - 1)
    clock.advance(5.0)
    spend(retries, 1)
    first, second = ids(2)
    assert isinstance(retries.refusal(first), RetriesSpent)
    assert isinstance(retries.refusal(second), RetriesSpent)
    clock.advance(5.0)
    spend(retries, NUM_FREE - 2)
    # One may go: not whoever happens to ask.
    assert isinstance(retries.refusal(second), RetriesSpent)
    assert retries.refusal(first) is None
    retries.placed(again=True)
    assert isinstance(retries.refusal(second), RetriesSpent)


def test_who_ends_leaves_the_line() -> None:
    retries = Retries(clock := ManualClock())
    spend(retries, NUM_FREE)
    first, second = ids(2)
    with retries.running(first):
        spend(retries, 2)
        assert retries.refusal(first) is not None
    assert retries.refusal(second) is not None
    clock.advance(10.0)
    spend(retries, NUM_FREE - 1)
    assert retries.refusal(second) is None


@given(num_lost=st.integers(1, 256), num_first_recent=st.integers(0, 50))
def test_one_dead_instance_is_never_delayed(num_lost: int, num_first_recent: int) -> None:
    """All its answers are placed anew at once, each twice if need be."""
    retries = Retries(ManualClock())
    for _ in range(num_first_recent):
        retries.placed(again=False)
    lost = ids(num_lost)
    with ExitStack() as stack:
        for handoff_id in lost:
            stack.enter_context(retries.running(handoff_id))
        for handoff_id in lost * 2:
            assert retries.refusal(handoff_id) is None
            retries.placed(again=True)


async def test_all_of_a_dead_instance_go_on(stage: OpenStage) -> None:
    on = await stage("pdd")
    gates = [gate_token(5)(on["d0"]), gate_token(5)(on["d1"])]
    asked = [ask(on.client) for _ in range(60)]
    for one in asked:
        await one.until_tokens(5)
    await on["d0"].kill()
    for gate in gates:
        gate.open.set()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.answer()) for one in asked]
    attempts = [task.result().timing.num_attempts for task in tasks]
    assert 1 in attempts
    assert max(attempts) > 1
