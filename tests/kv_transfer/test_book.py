"""The source book: fences, tombstones, expiry; without IO."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from core.blocks import BlockState, leak_report
from core.clock import ManualClock
from core.config import HandoffConfig
from core.errors import Saturated, StaleFence, UnknownRequest, WrongState
from core.handoff import SourceState
from core.ids import HandoffId
from core.kv_layout import layer_groups
from core.request import Fence
from engine.block_allocator import BlockAllocator
from kv_transfer import book as book_module
from kv_transfer import tombstones
from kv_transfer.book import Reading, SourceBook
from kv_transfer.source import FirstToken, Outcome, Source
from kv_transfer.tombstones import Tombstones
from tests.kv_transfer.support import ID, SMALL, until

TTL_S, WAIT_S = 10.0, 5.0
TOKEN = FirstToken(token_id=1, position=0, finish_reason=None, sampled_at_s=0.0)


def fence(attempt: int) -> Fence:
    return Fence(0, attempt)


class Desk:
    """A book and what its owner sees."""

    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.blocks = BlockAllocator(8, SMALL.block_size)
        config = HandoffConfig(lease_ttl_s=TTL_S, unknown_handoff_wait_s=WAIT_S)
        self.book = SourceBook(layout=SMALL, blocks=self.blocks, clock=self.clock, config=config)
        self.ended: list[tuple[Fence, Outcome | None]] = []

    def accept(self, attempt: int = 1) -> Source:
        return self.book.accept(
            ID, fence(attempt), on_ended=lambda s: self.ended.append((s.fence, s.outcome))
        )

    def lease(self, attempt: int = 1) -> Source:
        source = self.accept(attempt)
        assert self.book.started(source, self.blocks.allocate(2, BlockState.OWNED), 20)
        assert self.book.finished(source, TOKEN)
        return source

    def after(self, duration_s: float) -> None:
        self.clock.advance(duration_s)
        self.book.expire()

    def assert_clean(self) -> None:
        assert leak_report(self.blocks.counts(), 8) is None
        assert self.book.num_sources == 0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def reading(desk: Desk, attempt: int = 1) -> AbstractContextManager[Reading]:
    return desk.book.reading(ID, fence(attempt), max_segment_bytes=4096)


def test_a_committed_lease_gives_its_blocks_back(desk: Desk) -> None:
    desk.lease()
    assert (desk.book.num_leases, desk.blocks.counts()[BlockState.LEASED]) == (1, 2)
    for _ in range(2):  # idempotent
        desk.book.release(ID, fence(1), committed=True)
    assert desk.ended == [(fence(1), Outcome.COMMITTED)]
    desk.assert_clean()


ENDINGS: list[tuple[str, Callable[[Desk, Source], None], Outcome]] = [
    ("released", lambda d, s: d.book.release(ID, fence(1), committed=False), Outcome.ABORTED),
    ("released later", lambda d, s: d.book.release(ID, fence(2), committed=False), Outcome.ABORTED),
    ("ended", lambda d, s: d.book.end(s, Outcome.ABORTED), Outcome.ABORTED),
    ("superseded", lambda d, s: d.book.end(d.accept(2), Outcome.ABORTED), Outcome.SUPERSEDED),
    ("expired", lambda d, s: d.after(TTL_S), Outcome.EXPIRED),
]


@pytest.mark.parametrize(("end", "outcome"), [c[1:] for c in ENDINGS], ids=[c[0] for c in ENDINGS])
def test_an_attempt_ends_once_and_stays_ended(
    desk: Desk, end: Callable[[Desk, Source], None], outcome: Outcome
) -> None:
    source = desk.lease()
    end(desk, source)
    assert desk.ended[0] == (fence(1), outcome)
    num_ended = len(desk.ended)
    # Whatever a step that was running still reports.
    desk.book.progress(source, 0, 20)
    assert not desk.book.finished(source, TOKEN)
    assert not desk.book.started(source, (), 20)
    desk.book.end(source, Outcome.ABORTED)
    assert len(desk.ended) == num_ended
    for late in (desk.accept, lambda: reading(desk).__enter__()):
        with pytest.raises(StaleFence):
            late()
    with pytest.raises((StaleFence, UnknownRequest)):
        desk.book.renew(ID, fence(1))
    desk.assert_clean()


def test_a_cancel_may_overtake_its_call(desk: Desk) -> None:
    desk.book.release(ID, fence(2), committed=False)
    for attempt in (1, 2):
        with pytest.raises(StaleFence):
            desk.accept(attempt)
    desk.book.end(desk.accept(3), Outcome.ABORTED)
    desk.after(TTL_S)
    assert desk.book.num_tombstones == 0
    desk.accept(1)


def test_a_call_is_accepted_once(desk: Desk) -> None:
    desk.accept(2)
    with pytest.raises(WrongState):
        desk.accept(2)
    with pytest.raises(StaleFence):
        desk.accept(1)
    assert desk.ended == []


def test_an_early_fetch_joins_its_prefill(desk: Desk) -> None:
    with reading(desk) as hold:
        assert hold.source is desk.accept()
        assert hold.changed.is_set()
        assert desk.book.num_fetches == 1
    assert desk.book.num_fetches == 0
    assert hold.source.state is SourceState.QUEUED


def test_a_decode_placed_anew_joins_the_prefill_it_finds(desk: Desk) -> None:
    with reading(desk, attempt=3) as hold:
        assert hold.source is desk.accept(2)


def test_a_fetch_for_an_earlier_prefill_does_not_read_a_later_one(desk: Desk) -> None:
    with reading(desk, attempt=1) as hold:
        source = desk.accept(2)
        assert hold.source is not source
        assert hold.source.state is SourceState.ENDED
        with pytest.raises(StaleFence):
            reading(desk, attempt=1).__enter__()
    assert desk.ended == []
    assert source.state is SourceState.QUEUED


def test_a_fetch_nobody_prefills_for_ends(desk: Desk) -> None:
    with reading(desk) as hold:
        desk.after(WAIT_S / 2)
        assert hold.source.state is SourceState.AWAITED
        desk.after(WAIT_S / 2)
        assert hold.source.outcome is Outcome.EXPIRED
    desk.assert_clean()
    desk.accept()  # late, yet nothing of it was refused here


def test_a_fetch_that_leaves_early_is_forgotten(desk: Desk) -> None:
    with reading(desk):
        pass
    desk.assert_clean()
    assert desk.book.num_tombstones == 0


def test_only_the_newest_reader_counts(desk: Desk) -> None:
    source = desk.lease()
    with reading(desk, 1) as old, reading(desk, 2) as new:
        assert (old.is_current, new.is_current) == (False, True)
        with pytest.raises(StaleFence):
            desk.book.renew(ID, fence(1))
        with pytest.raises(StaleFence):
            desk.book.release(ID, fence(1), committed=True)
    # Gone, the newer one still counts.
    with pytest.raises(StaleFence):
        reading(desk, 1).__enter__()
    assert source.state is SourceState.LEASED


def test_renewals_keep_a_lease(desk: Desk) -> None:
    desk.lease()
    for _ in range(5):
        desk.after(TTL_S * 0.9)
        desk.book.renew(ID, fence(1))
    desk.after(TTL_S * 0.9)
    assert desk.ended == []
    desk.after(TTL_S * 0.1)
    assert desk.ended == [(fence(1), Outcome.EXPIRED)]


def test_a_prefill_that_queues_or_computes_does_not_expire(desk: Desk) -> None:
    source = desk.accept()
    desk.after(TTL_S * 9)
    desk.book.started(source, desk.blocks.allocate(2, BlockState.OWNED), 20)
    desk.after(TTL_S * 9)
    assert desk.ended == []


def test_waiting_fetches_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_AWAITED", 1)
    with reading(desk), pytest.raises(Saturated):
        desk.book.reading(HandoffId("other"), fence(1), max_segment_bytes=4096).__enter__()


def test_tombstones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "MAX_TOMBSTONES", 3)
    graves = Tombstones(10.0)
    for i in range(5):
        graves.add(HandoffId(f"h{i}"), fence(1), float(i))
    assert len(graves) == 3
    assert graves.fence(HandoffId("h4"), 5.0) == fence(1)
    graves.add(HandoffId("h4"), fence(3), 6.0)
    graves.add(HandoffId("h4"), fence(2), 7.0)
    assert graves.fence(HandoffId("h4"), 8.0) == fence(3)
    assert graves.next_expiry_s == 12.0
    graves.expire(17.0)
    assert len(graves) == 0


async def test_the_reaper_sleeps_until_something_expires() -> None:
    desk = Desk()
    turns = 0
    expire = desk.book.expire

    def counted() -> None:
        nonlocal turns
        turns += 1
        expire()

    desk.book.expire = counted  # type: ignore[method-assign]
    reaping = asyncio.ensure_future(desk.book.reap())
    await until(lambda: turns == 1)
    desk.lease()
    await until(lambda: turns == 2)  # a new expiry: looks once, sleeps again
    desk.clock.advance(TTL_S)
    desk.book.release(HandoffId("another"), fence(1), committed=False)
    await until(lambda: desk.ended == [(fence(1), Outcome.EXPIRED)])
    assert turns <= 4
    reaping.cancel()
    await asyncio.wait([reaping])


def test_who_comes_when_all_is_computed_gets_the_fewest_segments(desk: Desk) -> None:
    """There is nothing left to overlap with; who was there before gets them layer by layer."""
    by_layer = layer_groups(SMALL.num_layers, SMALL.num_layers)
    for attempt, is_early in ((1, True), (2, False)):
        source = desk.accept(attempt)
        block_ids = desk.blocks.allocate(2, BlockState.OWNED)
        assert desk.book.started(source, block_ids, 20, by_layer)
        if not is_early:
            assert desk.book.finished(source, TOKEN)
        with reading(desk, attempt) as stream:
            if is_early:
                assert desk.book.finished(source, TOKEN)
            source.credit(stream.reader, 20)
            first = stream.reader.next_segment(SMALL, source.frontier)
            assert first is not None
            assert len(first.range.layers) == (1 if is_early else SMALL.num_layers)
