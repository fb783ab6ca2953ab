"""Whether an instance lives is asked once for all who wait, whatever the answer."""

import asyncio

import pytest

from core.clock import MonotonicClock
from core.ids import RouterId
from router.link import InstanceLink
from router.spec import Speed
from router.view import View
from tests.router.fakes import instances

NUM_WAITING = 8


@pytest.mark.parametrize("deaf", [False, True])
async def test_one_call_for_all(*, deaf: bool) -> None:
    clock = MonotonicClock()
    async with instances("d") as peers:
        peer = peers["d0"]
        peer.script.deaf = deaf
        link = InstanceLink(
            peer.member(),
            RouterId("router"),
            silence_s=60.0,
            sight=View(Speed().model(), clock).join(peer.member()),
            on_change=lambda: None,
            on_lost=lambda link, error: None,
        )
        since_s = clock.now_s()
        async with asyncio.TaskGroup() as group:
            proofs = [group.create_task(link.prove(since_s)) for _ in range(NUM_WAITING)]
        assert [proof.result() for proof in proofs] == [not deaf] * NUM_WAITING
        assert peer.num_status_calls == 1
        # Whoever lost something later asks again.
        assert await link.prove(clock.now_s()) is not deaf
        assert peer.num_status_calls == 2
        await link.channel.close()
