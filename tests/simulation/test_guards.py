"""The guards that make pairs of the tables unreachable (see unreachable.py)."""

import pytest

from core.blocks import BlockState
from core.clock import ManualClock
from core.config import HandoffConfig
from core.errors import StaleFence
from core.handoff import SinkState, SourceState
from core.ids import HandoffId
from core.kv_layout import KvRange
from core.request import Fence
from engine.block_allocator import BlockAllocator
from kv_transfer.book import SourceBook
from kv_transfer.sink import Sink
from kv_transfer.source import FirstToken, Outcome, Source
from tests.simulation.content import LAYOUT, whole

HANDOFF_ID = HandoffId("h")
FIRST, SECOND = Fence(0, 1), Fence(0, 2)
TOKEN = FirstToken(token_id=5, position=0, finish_reason=None, sampled_at_s=0.0)
NUM_TOKENS = 3


def ended_source() -> tuple[SourceBook, Source, list[Source]]:
    """A book, a source of it that was released, and who was told of its end."""
    told: list[Source] = []
    blocks = BlockAllocator(8, LAYOUT.block_size)
    book = SourceBook(layout=LAYOUT, blocks=blocks, clock=ManualClock(), config=HandoffConfig())
    source = book.accept(HANDOFF_ID, FIRST, on_ended=told.append)
    book.release(HANDOFF_ID, FIRST, committed=False)
    return book, source, told


def test_a_tombstone_refuses_calls() -> None:
    book, _, told = ended_source()
    with pytest.raises(StaleFence):
        book.accept(HANDOFF_ID, FIRST, on_ended=told.append)
    with pytest.raises(StaleFence):
        book.renew(HANDOFF_ID, FIRST)
    reading = book.reading(HANDOFF_ID, FIRST, max_segment_bytes=4096)
    with pytest.raises(StaleFence):
        reading.__enter__()
    assert book.num_sources == book.num_fetches == 0


def test_a_prefill_of_a_router_that_was_left_is_refused() -> None:
    """Found by the simulation: the client has resumed, and its new decode waits here already."""
    book, _, told = ended_source()
    resumed = book.reading(HANDOFF_ID, Fence(1, 1), max_segment_bytes=4096)
    with resumed as reading:
        with pytest.raises(StaleFence):
            book.accept(HANDOFF_ID, SECOND, on_ended=told.append)
        assert reading.is_current
        assert reading.source.state is SourceState.AWAITED


def test_a_step_that_outlives_its_attempt_reports_to_nobody() -> None:
    book, source, told = ended_source()
    book.progress(source, 0, 1)
    assert not book.finished(source, TOKEN)
    book.end(source, Outcome.ABORTED)
    assert told == [source]
    assert source.frontier == []


def test_release_and_expiry_after_the_end_change_nothing() -> None:
    _, source, _ = ended_source()
    source.release(SECOND, committed=True)
    assert not source.expire(now_s=1e9)
    assert (source.state, source.outcome) == (SourceState.ENDED, Outcome.ABORTED)


def new_sink(blocks: BlockAllocator) -> Sink:
    return Sink(handoff_id=HANDOFF_ID, layout=LAYOUT, blocks=blocks, fence=FIRST)


def sink_in(state: SinkState, blocks: BlockAllocator) -> Sink:
    """A sink that has come as far as `state`."""
    sink = new_sink(blocks)
    if state is SinkState.WAITING:
        return sink
    sink.announce(NUM_TOKENS)
    if state is SinkState.RESERVING:
        return sink
    sink.reserve(blocks.allocate(sink.num_missing_blocks, BlockState.INCOMING))
    if state is SinkState.COMMITTED:
        write = sink.begin_write(FIRST, whole(NUM_TOKENS))
        assert write is not None
        sink.end_write(write, 7)
        sink.end(FIRST, 7)
        assert sink.is_whole
        assert sink.commit()
    if state is SinkState.ENDED:
        sink.stop()
    return sink


@pytest.mark.parametrize("state", [s for s in SinkState if s is not SinkState.LOST])
def test_only_a_lost_sink_expires(state: SinkState) -> None:
    sink = sink_in(state, BlockAllocator(8, LAYOUT.block_size))
    assert sink.state is state
    assert not sink.expire(now_s=1e9, retarget_wait_s=0.0)
    assert sink.state is state


def test_no_segment_fits_an_ended_sink() -> None:
    blocks = BlockAllocator(8, LAYOUT.block_size)
    sink = sink_in(SinkState.ENDED, blocks)
    assert sink.begin_write(FIRST, KvRange(range(1), range(1))) is None
    assert blocks.counts()[BlockState.FREE] == blocks.num_blocks
