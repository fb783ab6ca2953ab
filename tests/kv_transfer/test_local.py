"""A handoff within one instance: blocks change hands, whatever ends first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from core.blocks import BlockState
from core.clock import MonotonicClock
from core.config import HandoffConfig
from core.handoff import SinkState, SourceState
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.errors import KvLost
from kv_transfer.local import LocalFetch
from kv_transfer.sink import Sink
from kv_transfer.source import Outcome, Source
from tests.kv_transfer.support import FIRST, ID, Instance, instance, until

if TYPE_CHECKING:
    from kv_transfer.result import FetchResult

SECOND = Fence(0, 2)


@asynccontextmanager
async def waiting(
    here: Instance, sink: Sink, num_tokens: int = 40
) -> AsyncIterator["asyncio.Task[FetchResult]"]:
    """A local fetch under way, ended at the latest with the block."""
    local = LocalFetch(here.book, MonotonicClock(), HandoffConfig())
    task = asyncio.ensure_future(local.run(sink, num_tokens=num_tokens))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_very_blocks_change_hands() -> None:
    async with instance() as here:
        source, sink = here.accept(), here.sink()
        async with waiting(here, sink) as task, asyncio.timeout(10):
            await until(lambda: here.book.num_fetches == 1)
            here.start(source, 40)
            kv, blocks = here.fill(source), source.block_ids
            assert here.finish(source)
            result = await task
        assert sink.block_ids == blocks
        assert (sink.state, sink.num_commits) == (SinkState.COMMITTED, 1)
        assert (source.state, source.outcome) == (SourceState.ENDED, Outcome.COMMITTED)
        assert here.ended == [source]
        assert (result.token.token_id, result.timing.num_kv_bytes) == (7, 0)
        assert (result.timing.carrier, result.timing.num_kv_tokens) == ("local", 40)
        counts = here.blocks.counts()
        assert (counts[BlockState.OWNED], counts[BlockState.LEASED]) == (len(blocks), 0)
        assert here.take(sink) == kv
        here.assert_no_leak()


async def test_a_fetch_that_comes_first_waits_for_its_prefill() -> None:
    async with instance() as here:
        sink = here.sink()
        async with waiting(here, sink) as task, asyncio.timeout(10):
            await until(lambda: here.book.num_fetches == 1)
            here.prefill(40)
            await task
        here.take(sink)
        here.assert_no_leak()


async def test_what_an_earlier_attempt_reserved_is_given_back() -> None:
    async with instance() as here:
        sink = here.sink()
        sink.announce(40)
        await here.reserve(sink)
        sink.lose(FIRST, 0.0)
        sink.retarget(SECOND)
        here.prefill(40, SECOND)
        async with waiting(here, sink) as task, asyncio.timeout(10):
            await task
        assert here.blocks.counts()[BlockState.INCOMING] == 0
        here.take(sink)
        here.assert_no_leak()


def supersede(here: Instance, source: Source) -> None:
    here.book.end(here.accept(SECOND), Outcome.ABORTED)


ENDINGS: list[tuple[str, Callable[[Instance, Source], None]]] = [
    ("aborted", lambda here, source: here.book.end(source, Outcome.ABORTED)),
    ("superseded", supersede),
    ("released", lambda here, source: here.book.release(ID, SECOND, committed=False)),
]


@pytest.mark.parametrize("end", [e[1] for e in ENDINGS], ids=[e[0] for e in ENDINGS])
async def test_a_prefill_that_ends_loses_the_kv(end: Callable[[Instance, Source], None]) -> None:
    async with instance() as here:
        source, sink = here.accept(), here.sink()
        here.start(source, 40)
        async with waiting(here, sink) as task, asyncio.timeout(10):
            await until(lambda: here.book.num_fetches == 1)
            end(here, source)
            with pytest.raises(KvLost) as lost:
                await task
        assert lost.value.why is KvLostReason.LEASE
        assert sink.state is SinkState.LOST
        sink.stop()
        here.assert_no_leak()


async def test_a_stopped_sink_leaves_the_lease_to_its_end() -> None:
    async with instance() as here:
        source, sink = here.accept(), here.sink()
        here.start(source, 40)
        async with waiting(here, sink) as task, asyncio.timeout(10):
            await until(lambda: here.book.num_fetches == 1)
            sink.stop()
            assert here.finish(source)
            with pytest.raises(KvLost):
                await task
        assert source.state is SourceState.LEASED
        here.book.end(source, Outcome.ABORTED)
        here.assert_no_leak()


async def test_a_prefill_of_other_tokens_is_refused() -> None:
    async with instance() as here:
        here.prefill(41)
        async with waiting(here, sink := here.sink()) as task, asyncio.timeout(10):
            with pytest.raises(KvLost, match="41 tokens, waited for are 40"):
                await task
        assert not sink.block_ids
        here.book.release(ID, FIRST, committed=False)
        here.assert_no_leak()
