"""A fetch cancelled at any moment leaves nothing behind."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.blocks import BlockState
from core.handoff import SinkState
from kv_transfer.sink import Sink
from tests.kv_transfer.support import (
    NUM_TOKENS,
    Instance,
    fetched,
    pair,
    until,
)

if TYPE_CHECKING:
    from kv_transfer.result import FetchResult

Moment = Callable[[Instance, Sink], bool]
MOMENTS: list[tuple[str, Moment]] = [
    ("at once", lambda decode, sink: True),
    ("while the prefill queues", lambda decode, sink: decode.fetcher.num_fetches == 1),
    ("announced", lambda decode, sink: sink.state is not SinkState.WAITING),
    ("reserved", lambda decode, sink: sink.state is SinkState.RECEIVING),
    ("in a copy", lambda decode, sink: decode.store.copying.is_set()),
    ("at the end", lambda decode, sink: sink.expected_digest is not None),
]


@pytest.mark.parametrize("moment", [c[1] for c in MOMENTS], ids=[c[0] for c in MOMENTS])
async def test_a_cancel_leaves_nothing(moment: Moment) -> None:
    async with pair() as (prefill, decode, _):
        decode.store.gate.clear()
        sink = decode.sink()
        fetching = asyncio.ensure_future(fetched(decode, prefill, sink, 16 * 6))
        if moment is MOMENTS[-1][1]:
            decode.store.gate.set()
        await cancel(fetching, decode, sink, lambda: moment(decode, sink) or fetching.done())


async def cancel(
    fetching: "asyncio.Future[FetchResult]", decode: Instance, sink: Sink, when: Callable[[], bool]
) -> None:
    """Cancel at a moment; the task may end only when no copy runs."""
    await until(when)
    sink.stop()
    fetching.cancel()
    if decode.blocks.counts()[BlockState.QUARANTINED]:
        await asyncio.sleep(0)
        assert not fetching.done()
    decode.store.gate.set()
    await asyncio.wait([fetching])
    decode.blocks.check()
    assert decode.blocks.num_free == decode.blocks.num_blocks


@settings(max_examples=25)
@given(num_turns=st.integers(0, 1000))
def test_a_cancel_at_any_turn_of_the_loop_leaves_nothing(num_turns: int) -> None:
    async def main() -> None:
        async with pair() as (prefill, decode, _):
            sink = decode.sink()
            fetching = asyncio.ensure_future(fetched(decode, prefill, sink, NUM_TOKENS))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            await cancel(fetching, decode, sink, lambda: True)

    asyncio.run(main())
