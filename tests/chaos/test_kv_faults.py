"""KV over a line that breaks in every way: the right bytes or a typed loss, and nothing left."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from core.ids import HandoffId
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.errors import KvLost
from kv_transfer.sink import Sink
from tests.chaos.fault_proxy import FaultProxy, Stop, fault_proxy
from tests.kv_transfer.support import ID, QUICK, Instance, fetched, instance, until

NUM_TOKENS = 100
NUM_KV_BYTES = NUM_TOKENS * 512
MIDDLE = NUM_KV_BYTES // 2
"""Bytes of a connection after which KV is flowing, either way of counting gRPC's own."""
BESIDE = HandoffId("beside/0")
IMPATIENT = replace(QUICK, progress_timeout_s=0.5, unknown_handoff_wait_s=0.5)

Faults = dict[str, object]
Outcome = KvLostReason | None

PEER, STALLED = KvLostReason.PEER, KvLostReason.STALLED
LOST: frozenset[Outcome] = frozenset(KvLostReason)
EXACT: frozenset[Outcome] = frozenset({None})
EITHER = LOST | EXACT


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Instance, Instance, FaultProxy]]:
    """A prefill, a decode, and a proxy to the prefill; nothing may be left of any handoff."""
    async with (
        instance(config=IMPATIENT) as prefill,
        instance(config=IMPATIENT) as decode,
        fault_proxy(prefill.address) as proxy,
    ):
        yield prefill, decode, proxy
        for handoff_id in (ID, BESIDE):
            prefill.book.release(handoff_id, Fence(9, 9), committed=False)
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()


async def outcome(decode: Instance, prefill: Instance, sink: Sink) -> Outcome:
    """None once it is committed, with the first token that prefill sampled."""
    try:
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
    except KvLost as error:
        return error.why
    assert (result.token.token_id, result.token.position) == (7, 0)
    return None


async def hand_off(
    prefill: Instance, decode: Instance, proxy: FaultProxy, *, beside: bool = True
) -> Outcome:
    """What came of a handoff over the proxy, one beside it being undisturbed.

    A lost one is had again from the same lease over a line in order: neither end was harmed.
    """
    far, sink, other = replace(prefill, address=proxy.address), decode.sink(), None
    kv = prefill.prefill(NUM_TOKENS)
    async with asyncio.TaskGroup() as group:
        hurt = group.create_task(outcome(decode, far, sink))
        if beside:
            other_kv, other = (
                prefill.prefill(NUM_TOKENS, handoff_id=BESIDE),
                decode.sink(handoff_id=BESIDE),
            )
            group.create_task(fetched(decode, prefill, other, NUM_TOKENS))
    if other is not None:
        assert decode.take(other) == other_kv
    if hurt.result() is not None:
        sink.retarget(Fence(0, 2))
        assert await outcome(decode, prefill, sink) is None
    assert decode.take(sink) == kv
    return hurt.result()


CASES: list[tuple[str, str, Faults, frozenset[Outcome]]] = [
    # id                     direction, faults, how it may end
    ("far away", "down", {"latency_s": 0.05}, EXACT),
    ("far to ask", "up", {"latency_s": 0.05}, EXACT),
    ("50 KB/s", "down", {"bytes_per_s": 50_000.0}, EXACT),
    ("5 KB/s to ask", "up", {"bytes_per_s": 5_000.0}, EXACT),
    ("slower than the patience", "down", {"bytes_per_s": 500.0}, LOST),
    ("reset at once", "down", {"stops": {Stop.RESET: 0}}, frozenset({PEER})),
    ("reset in the middle", "down", {"stops": {Stop.RESET: MIDDLE}}, frozenset({PEER})),
    ("reset while asking", "up", {"stops": {Stop.RESET: 200}}, frozenset({PEER})),
    ("closed in the middle", "down", {"stops": {Stop.TRUNCATE: MIDDLE}}, frozenset({PEER})),
    ("closed while asking", "up", {"stops": {Stop.TRUNCATE: 200}}, frozenset({PEER})),
    ("silent in the middle", "down", {"stops": {Stop.BLACKHOLE: MIDDLE}}, frozenset({STALLED})),
    ("silent from the start", "down", {"stops": {Stop.BLACKHOLE: 0}}, frozenset({STALLED})),
    ("nobody hears", "up", {"stops": {Stop.BLACKHOLE: 200}}, frozenset({PEER, STALLED})),
    ("a chunk twice", "down", {"duplicate_at": MIDDLE}, LOST),
    ("a question twice", "up", {"duplicate_at": 100}, EITHER),
]


@pytest.mark.parametrize(
    ("direction", "faults", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_a_line_with_faults(direction: str, faults: Faults, want: frozenset[Outcome]) -> None:
    async with two() as (prefill, decode, proxy):
        getattr(proxy, direction).change(**faults)
        assert await hand_off(prefill, decode, proxy) in want


async def test_both_directions_go_silent() -> None:
    """Half open: neither end is told that the other is gone."""
    async with two() as (prefill, decode, proxy):
        proxy.down.change(stops={Stop.BLACKHOLE: MIDDLE})
        # Later than the credit, sooner than the answer to the first window of KV.
        proxy.up.change(stops={Stop.BLACKHOLE: 600})
        assert await hand_off(prefill, decode, proxy) in {STALLED, PEER}


async def test_a_reset_on_command() -> None:
    """Of every connection, with the handoff held in its first copy."""
    async with two() as (prefill, decode, proxy):
        prefill.prefill(NUM_TOKENS)
        prefill.store.gate.clear()
        sink = decode.sink()
        far = replace(prefill, address=proxy.address)
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(outcome(decode, far, sink))
            await until(lambda: prefill.book.num_fetches == 1)
            proxy.reset()
        assert fetching.result() is PEER
        prefill.store.gate.set()
        sink.stop()


RNG = random.Random(7)
FLIPS = [
    *(("up", at) for at in sorted(RNG.sample(range(700), 12))),
    *(("down", at) for at in sorted(RNG.sample(range(600), 8))),
    *(("down", at) for at in sorted(RNG.sample(range(600, NUM_KV_BYTES), 12))),
    *(("down", at) for at in range(NUM_KV_BYTES + 300, NUM_KV_BYTES + 900, 20)),
]


@pytest.mark.parametrize(("direction", "at"), FLIPS, ids=[f"{way} {at}" for way, at in FLIPS])
async def test_a_flipped_bit(direction: str, at: int) -> None:
    """In KV it is mended; in what frames it, gRPC ends the connection or we lose the attempt."""
    async with two() as (prefill, decode, proxy):
        getattr(proxy, direction).change(flip_at=at)
        got = await hand_off(prefill, decode, proxy, beside=False)
        assert got in EITHER


@pytest.mark.parametrize("seed", range(4))
async def test_bits_flip_all_the_time(seed: int) -> None:
    """About one byte in 5000 arrives changed: more than can be mended, again and again."""
    async with two() as (prefill, decode, proxy):
        proxy.down.change(flip_share=2e-4, seed=seed)
        assert await hand_off(prefill, decode, proxy) in EITHER
