"""Handoffs that go wrong: typed reasons, bounded waits, and no block left behind."""

import asyncio
from dataclasses import replace

import pytest

from core.blocks import BlockState
from core.handoff import SinkState
from core.ids import Fingerprint
from core.work import KvLostReason, Peer
from kv_transfer.errors import KvLost
from kv_transfer.sink import Sink
from kv_transfer.source import Outcome
from rpc.kv_wire import read_frame, write_frame
from tests.kv_transfer.support import (
    FIRST,
    ID,
    NUM_TOKENS,
    QUICK,
    Tamper,
    fetched,
    instance,
    lost,
    pair,
    until,
)


class Spoil:
    """Changes the first `times` segments whose index is `index` (any: None)."""

    def __init__(self, change: Tamper, times: int, index: int | None = None) -> None:
        self._change = change
        self._index = index
        self.left = times

    def __call__(self, frame: bytes) -> bytes | tuple[bytes, ...] | None:
        header = read_frame(frame).message
        if not self.left or header.WhichOneof("message") != "segment":
            return frame
        if self._index is not None and header.segment.index != self._index:
            return frame
        self.left -= 1
        return self._change(frame)


def flip(frame: bytes) -> bytes:
    """One bit of the payload."""
    return frame[:-5] + bytes([frame[-5] ^ 0x10]) + frame[-4:]


def changed(**fields: int) -> Tamper:
    """A header that says something else about the same payload."""

    def change(frame: bytes) -> bytes:
        got = read_frame(frame)
        for name, value in fields.items():
            setattr(got.message.segment, name, value)
        return write_frame(got.message, got.payload)

    return change


def cut(frame: bytes) -> bytes:
    """A payload too short, its checksum right."""
    got = read_frame(frame)
    return write_frame(got.message, got.payload[:-4])


def garbage(_: bytes) -> bytes:
    """No message at all."""
    return b"\xff" * 40


MENDED = [
    ("one bit", flip),
    ("short payload", cut),
    ("layer outside the model", changed(layer_start=400)),
    ("token outside the prompt", changed(token_start=2**31)),
    ("no layers", changed(num_layers=0)),
    ("huge", changed(num_tokens=2**32 - 1)),
    ("another rank's heads", changed(head_start=1)),
    ("a segment of another attempt", changed(attempt=9)),
]


@pytest.mark.parametrize("change", [c[1] for c in MENDED], ids=[c[0] for c in MENDED])
async def test_a_damaged_segment_is_fetched_again(change: Tamper) -> None:
    spoil = Spoil(change, times=3)
    async with pair(spoil) as (prefill, decode, kv):
        sink = decode.sink()
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
        assert spoil.left == 0
        assert sink.num_refetches == 3
        assert result.timing.num_segments > 3
        assert decode.take(sink) == kv


LOST = [
    ("damaged too often", Spoil(flip, times=4), KvLostReason.CORRUPT),
    ("the same one too often", Spoil(flip, times=4, index=1), KvLostReason.CORRUPT),
    ("never sent", Spoil(lambda _: None, times=1), KvLostReason.CORRUPT),
    ("no message", Spoil(garbage, times=1), KvLostReason.CORRUPT),
]


@pytest.mark.parametrize(("spoil", "why"), [c[1:] for c in LOST], ids=[c[0] for c in LOST])
async def test_what_cannot_be_mended_is_lost(spoil: Spoil, why: KvLostReason) -> None:
    async with pair(spoil) as (prefill, decode, _):
        sink = decode.sink()
        assert await lost(decode, prefill, sink, NUM_TOKENS) is why
        assert sink.state is SinkState.LOST
        assert sink.lost_at_s > 0
        assert sink.num_commits == 0
        sink.stop()


@pytest.mark.parametrize(
    "spoil", [Spoil(changed(layer_start=0), 1, index=3), Spoil(changed(token_start=30), 1)]
)
async def test_right_bytes_in_the_wrong_place_never_commit(spoil: Spoil) -> None:
    """It comes again, or has hidden another segment and the attempt is lost: whichever lands
    first."""
    async with pair(spoil) as (prefill, decode, kv):
        sink = decode.sink()
        try:
            await fetched(decode, prefill, sink, NUM_TOKENS)
        except KvLost:
            assert sink.num_commits == 0
            sink.stop()
        else:
            assert decode.take(sink) == kv


async def test_repeated_and_late_segments_count_once() -> None:
    earlier: list[bytes] = []

    def repeat(frame: bytes) -> tuple[bytes, ...]:
        if read_frame(frame).message.WhichOneof("message") != "segment":
            return (frame,)
        earlier.append(frame)
        return (frame, *earlier)

    async with pair(repeat) as (prefill, decode, kv):
        sink = decode.sink()
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
        assert result.timing.num_kv_bytes > len(kv)
        assert decode.take(sink) == kv


def end_with(**fields: float) -> Tamper:
    def change(frame: bytes) -> bytes:
        got = read_frame(frame)
        if got.message.WhichOneof("message") == "end":
            for name, value in fields.items():
                setattr(got.message.end, name, value)
            return write_frame(got.message)
        return frame

    return change


def announce_with(**fields: object) -> Tamper:
    def change(frame: bytes) -> bytes:
        got = read_frame(frame)
        if got.message.WhichOneof("message") == "announce":
            for name, value in fields.items():
                setattr(got.message.announce, name, value)
            return write_frame(got.message)
        return frame

    return change


ODD_FRAMES = [
    ("wrong digest", end_with(digest=1), KvLostReason.CORRUPT),
    ("time is not a number", end_with(source_tail_s=float("nan")), KvLostReason.CORRUPT),
    ("unknown finish", end_with(finish_reason=77), KvLostReason.CORRUPT),
    ("another length", announce_with(num_tokens=2**32 - 1), KvLostReason.LEASE),
    ("another model", announce_with(num_layers=5), KvLostReason.LEASE),
    ("another dtype", announce_with(dtype="float16"), KvLostReason.LEASE),
    ("another wire format", announce_with(wire_format="morse"), KvLostReason.LEASE),
    ("no lease time", announce_with(lease_ttl_s=float("nan")), KvLostReason.LEASE),
]


@pytest.mark.parametrize(
    ("tamper", "why"), [c[1:] for c in ODD_FRAMES], ids=[c[0] for c in ODD_FRAMES]
)
async def test_an_odd_frame_only_loses_its_handoff(tamper: Tamper, why: KvLostReason) -> None:
    async with pair(tamper) as (prefill, decode, _):
        sink = decode.sink()
        assert await lost(decode, prefill, sink, NUM_TOKENS) is why
        sink.stop()


async def test_an_unknown_carrier_falls_back_to_inline() -> None:
    async with pair(announce_with(carrier="pigeon")) as (prefill, decode, kv):
        sink = decode.sink()
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
        assert result.timing.carrier == "grpc"
        assert decode.take(sink) == kv


async def test_a_prefill_that_never_comes() -> None:
    config = replace(QUICK, unknown_handoff_wait_s=0.05)
    async with instance(config=config) as prefill, instance() as decode:
        assert await lost(decode, prefill, decode.sink(), 8) is KvLostReason.LEASE
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()


async def test_nobody_listens() -> None:
    async with instance() as decode, instance() as gone:
        await gone.server.stop(grace=None)
        assert await lost(decode, gone, decode.sink(), 8) is KvLostReason.PEER


async def test_a_bad_address() -> None:
    async with instance() as decode:
        peer = Peer("p", "unix:/tmp/x")
        with pytest.raises(KvLost) as caught:
            await decode.fetcher.run(decode.sink(), peer, num_tokens=8, reserve=decode.reserve)
        assert caught.value.why is KvLostReason.PEER


async def test_the_source_dies_in_the_middle() -> None:
    async with instance() as prefill, instance() as decode:
        source = prefill.accept()
        prefill.start(source, NUM_TOKENS)
        prefill.fill(source)
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(lost(decode, prefill, sink, NUM_TOKENS))
            prefill.book.progress(source, 0, 32)
            await until(lambda: source.reader is not None and source.reader.num_segments > 0)
            await prefill.server.stop(grace=None)
        assert fetching.result() is KvLostReason.PEER
        prefill.book.end(source, Outcome.ABORTED)
        sink.stop()
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()


async def test_the_source_may_die_after_its_last_frame() -> None:
    async with instance() as prefill, instance() as decode:
        kv = prefill.prefill(16)
        decode.store.gate.clear()
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(fetched(decode, prefill, sink, 16))
            await until(lambda: sink.expected_digest is not None)
            await prefill.server.stop(grace=None)
            decode.store.gate.set()
        assert fetching.result().timing.num_kv_tokens == 16
        assert decode.take(sink) == kv


async def test_other_weights_are_refused() -> None:
    async with pair() as (prefill, decode, _):
        decode.fetcher._host = replace(decode.fetcher._host, fingerprint=Fingerprint("other"))
        assert await lost(decode, prefill, decode.sink(), NUM_TOKENS) is KvLostReason.LEASE


async def test_a_source_that_stalls() -> None:
    config = replace(QUICK, progress_timeout_s=0.1)
    async with instance() as prefill, instance(config=config) as decode:
        prefill.prefill(NUM_TOKENS)
        prefill.store.gate.clear()
        sink = decode.sink()
        assert await lost(decode, prefill, sink, NUM_TOKENS) is KvLostReason.STALLED
        sink.stop()
        prefill.store.gate.set()
        prefill.book.release(ID, FIRST, committed=False)
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()


async def test_a_slow_prefill_is_no_stall() -> None:
    often, patience = replace(QUICK, progress_timeout_s=0.2), replace(QUICK, progress_timeout_s=0.6)
    beats = 0

    def count(frame: bytes) -> bytes:
        nonlocal beats
        beats += not frame
        return frame

    async with instance(config=often, tamper=count) as prefill, instance(config=patience) as decode:
        source = prefill.accept()
        prefill.start(source, 16)
        kv = prefill.fill(source)
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            group.create_task(fetched(decode, prefill, sink, 16))
            # Longer than decode's patience: at three beats per 0.2 s.
            await until(lambda: beats >= 12)
            prefill.finish(source)
        assert decode.take(sink) == kv


async def test_a_released_block_is_kept_from_others_until_its_gather_ends() -> None:
    async with instance() as prefill, instance() as decode:
        prefill.prefill(16)
        prefill.store.copying.clear()
        prefill.store.gate.clear()
        sink = decode.sink()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(lost(decode, prefill, sink, 16))
            await until(prefill.store.copying.is_set)
            prefill.book.end(prefill.book.source(ID), Outcome.ABORTED)
            assert prefill.blocks.counts()[BlockState.QUARANTINED] == 1
            prefill.store.gate.set()
        assert fetching.result() is KvLostReason.LEASE
        assert sink.state is SinkState.LOST
        sink.stop()
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()


async def test_a_failing_reserve_ends_the_run() -> None:
    async with pair() as (prefill, decode, _):

        async def refuse(sink: Sink) -> None:
            raise MemoryError("no room, ever")

        sink = decode.sink()
        with pytest.raises(MemoryError):
            await fetched(decode, prefill, sink, NUM_TOKENS, refuse)
        sink.stop()


async def test_a_failing_store_ends_the_run() -> None:
    async with pair() as (prefill, decode, _):

        def fail(*_: object) -> None:
            raise OSError("device lost")

        decode.store.scatter = fail  # type: ignore[assignment, method-assign]
        sink = decode.sink()
        with pytest.raises(OSError, match="device lost"):
            await fetched(decode, prefill, sink, NUM_TOKENS)
        sink.stop()
