"""A bounded wait tells how it ended, and passes a cancel on."""

import asyncio

import pytest

from core.waiting import wait_at_most

LONG_S = 3600.0

CASES = [
    # id            is set  timeout_s  want
    ("set", True, LONG_S, True),
    ("set, no bound", True, None, True),
    ("not set", False, 0.0, False),
]


@pytest.mark.parametrize(
    ("is_set", "timeout_s", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_wait_at_most(is_set: bool, timeout_s: float | None, want: bool) -> None:
    event = asyncio.Event()
    if is_set:
        event.set()
    assert await wait_at_most(event, timeout_s) is want


@pytest.mark.parametrize("timeout_s", [LONG_S, None])
async def test_it_ends_when_the_event_is_set(timeout_s: float | None) -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_at_most(event, timeout_s))
        await asyncio.sleep(0)
        assert not waiting.done()
        event.set()
    assert waiting.result()


async def test_a_cancel_is_no_timeout() -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_at_most(asyncio.Event(), LONG_S))
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()
