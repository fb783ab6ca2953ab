"""Whole handoffs over real gRPC: the bytes arrive, once, and nothing is left behind."""

import asyncio
from dataclasses import replace

import pytest

from core.blocks import BlockState
from core.clock import ManualClock
from core.handoff import SinkState
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.sink import Sink
from kv_transfer.source import Outcome
from rpc.kv_wire import read_frame
from tests.kv_transfer.support import ID, QUICK, SMALL, Instance, fetched, instance, lost, until

LAYOUTS = [
    ("float32", SMALL),
    ("bfloat16", replace(SMALL, dtype="bfloat16", head_dim=64)),
    ("ragged heads", replace(SMALL, dtype="float16", head_dim=3, num_kv_heads=5)),
    ("one layer", replace(SMALL, num_layers=1)),
]


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 200])
@pytest.mark.parametrize("layout", [c[1] for c in LAYOUTS], ids=[c[0] for c in LAYOUTS])
async def test_the_bytes_arrive(layout: KvLayout, num_tokens: int) -> None:
    async with instance(layout) as prefill, instance(layout) as decode:
        kv = prefill.prefill(num_tokens)
        sink = decode.sink()
        result = await fetched(decode, prefill, sink, num_tokens)
        assert (result.token.token_id, result.token.position) == (7, 0)
        assert result.timing.num_kv_bytes == len(kv)
        assert result.timing.num_kv_tokens == num_tokens
        assert decode.take(sink) == kv
        await until(lambda: bool(prefill.ended))
        assert [source.outcome for source in prefill.ended] == [Outcome.COMMITTED]
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()


async def test_segments_flow_while_prefill_computes() -> None:
    async with instance() as prefill, instance() as decode:
        sink = decode.sink()
        # The Fetch comes first and waits for its Prefill call.
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(fetched(decode, prefill, sink, 100))
            await until(lambda: prefill.book.num_fetches == 1)
            source = prefill.accept()
            prefill.start(source, 100)
            kv = prefill.fill(source)
            for num_tokens in (32, 64, 96, 100):
                for layer in range(SMALL.num_layers):
                    prefill.book.progress(source, layer, num_tokens)
                reader = source.reader
                assert reader is not None
                await until(lambda: reader.is_done(num_tokens))  # noqa: B023 - awaited at once
            assert not fetching.done()
            prefill.finish(source)
        assert decode.take(sink) == kv
        # Most of it had left when the token was sampled.
        assert fetching.result().timing.first_segment_lead_s > 0.0


async def test_decode_may_use_other_blocks() -> None:
    other = replace(SMALL, block_size=7)
    async with instance() as prefill, instance(other) as decode:
        kv = prefill.prefill(100)
        sink = decode.sink()
        await fetched(decode, prefill, sink, 100)
        assert decode.take(sink) == kv
        decode.assert_no_leak()


async def test_an_instance_may_fetch_from_itself() -> None:
    async with instance() as mixed:
        kv = mixed.prefill(100)
        sink = mixed.sink()
        await fetched(mixed, mixed, sink, 100)
        assert mixed.take(sink) == kv
        await until(lambda: not mixed.book.num_sources and not mixed.book.num_fetches)
        mixed.assert_no_leak()


async def test_many_at_once_in_both_directions() -> None:
    async with instance() as left, instance() as right:
        ends = [(left, right), (right, left)] * 12
        ids = [HandoffId(f"r{i}/0") for i in range(len(ends))]
        async with asyncio.TaskGroup() as group:
            for handoff_id, (prefill, decode) in zip(ids, ends, strict=True):
                group.create_task(_hand_off(prefill, decode, handoff_id))
        for end in (left, right):
            await until(lambda: not end.book.num_sources and not end.book.num_fetches)  # noqa: B023
            end.assert_no_leak()


async def _hand_off(prefill: Instance, decode: Instance, handoff_id: HandoffId) -> None:
    kv = prefill.prefill(30, handoff_id=handoff_id)
    sink = decode.sink(handoff_id=handoff_id)
    await fetched(decode, prefill, sink, 30)
    assert decode.take(sink) == kv


async def test_nothing_flows_beyond_the_credit() -> None:
    granted = 0
    beyond = []

    def look(frame: bytes) -> bytes:
        segment = read_frame(frame).message.segment  # all zeros in other frames
        if segment.token_start + segment.num_tokens > granted:
            beyond.append(segment)
        return frame

    async with instance(tamper=look) as prefill, instance() as decode:
        kv = prefill.prefill(100)
        sink = decode.sink()

        async def reserve_one(sink: Sink) -> None:
            nonlocal granted
            reader = prefill.book.source(ID).reader
            assert reader is not None
            await until(lambda: not granted or reader.is_done(granted))
            granted = sink.reserve(decode.blocks.allocate(1, BlockState.INCOMING))

        await fetched(decode, prefill, sink, 100, reserve_one)
        assert decode.take(sink) == kv
        assert beyond == []


async def test_decode_renews_while_it_has_no_room() -> None:
    clock = ManualClock()
    config = replace(QUICK, lease_ttl_s=0.06)  # of the loop's time between renewals: 0.02 s
    async with instance(config=config, clock=clock) as prefill, instance() as decode:
        kv = prefill.prefill(40)
        source = prefill.book.source(ID)
        sink = decode.sink()

        async def reserve_late(sink: Sink) -> None:
            for _ in range(3):
                clock.advance(0.05)
                await until(lambda: source.expires_at_s == clock.now_s() + 0.06)
            await decode.reserve(sink)

        await fetched(decode, prefill, sink, 40, reserve_late)
        assert decode.take(sink) == kv


async def test_the_newest_fetch_reads() -> None:
    async with instance() as prefill, instance() as first, instance() as second:
        kv = prefill.prefill(40)
        room = asyncio.Event()

        async def reserve_late(sink: Sink) -> None:
            await room.wait()

        async with asyncio.TaskGroup() as group:
            old = first.sink()
            overtaken = group.create_task(lost(first, prefill, old, 40, reserve_late))
            await until(lambda: prefill.book.num_fetches == 1)
            # Decode died, as the router sees it; another one fetches from the same lease.
            new = second.sink(Fence(0, 2))
            await fetched(second, prefill, new, 40)
        assert second.take(new) == kv
        assert overtaken.result() is KvLostReason.LEASE
        assert await lost(first, prefill, first.sink(), 40) is KvLostReason.LEASE
        await until(lambda: not prefill.book.num_sources)
        for each in (prefill, first, second):
            each.assert_no_leak()


async def test_a_later_prefill_ends_the_earlier_one() -> None:
    async with instance() as prefill, instance() as decode:
        source = prefill.accept()
        prefill.start(source, 40)
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(lost(decode, prefill, sink, 40))
            await until(lambda: sink.state is SinkState.RECEIVING)
            kv = prefill.prefill(40, Fence(0, 2))
        assert fetching.result() is KvLostReason.LEASE
        assert [s.outcome for s in prefill.ended] == [Outcome.SUPERSEDED]
        # Retargeted, the sink keeps its blocks.
        assert sink.state is SinkState.LOST
        sink.retarget(Fence(0, 2))
        await fetched(decode, prefill, sink, 40)
        assert decode.take(sink) == kv
        decode.assert_no_leak()


async def test_a_lease_without_a_reader_expires() -> None:
    config = replace(QUICK, lease_ttl_s=0.05)
    async with instance(config=config) as prefill:
        prefill.prefill(40)
        assert prefill.book.num_leases == 1
        await until(lambda: bool(prefill.ended))
        assert prefill.ended[0].outcome is Outcome.EXPIRED
        prefill.assert_no_leak()
