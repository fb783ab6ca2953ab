"""Ctrl-C and SIGTERM: the work's cleanup runs once and undisturbed."""

import asyncio
import os
import signal

import pytest

from deploy.interrupt import Interrupted, until_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_and_no_second_one_its_cleanup(number: signal.Signals) -> None:
    cleaned = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), number)
            # Long enough for the loop to see the second signal.
            for _ in range(3):
                await asyncio.to_thread(int)
            cleaned.append(True)

    with pytest.raises(Interrupted) as caught:
        asyncio.run(until_signal(work()))
    assert caught.value.exit_status == 128 + number
    assert cleaned == [True]


def test_a_signal_may_be_the_regular_end() -> None:
    async def work() -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "drained"
        return "never"

    assert asyncio.run(until_signal(work())) == "drained"


def test_without_a_signal_nothing_changes() -> None:
    async def work() -> int:
        return 7

    assert asyncio.run(until_signal(work())) == 7
