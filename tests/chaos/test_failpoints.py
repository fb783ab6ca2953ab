"""Faults planted at every place of a handoff: the right bytes or a typed loss, and nothing left."""

from dataclasses import replace

import pytest

from core.config import HandoffConfig
from core.errors import ConfigError
from core.failpoints import PLACES, FailpointHit, Failpoints
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.errors import KvLost
from kv_transfer.sink import Sink
from tests.kv_transfer.support import ID, QUICK, Instance, fetched, instance, until

NUM_TOKENS = 100
PEER, STALLED, CORRUPT = KvLostReason.PEER, KvLostReason.STALLED, KvLostReason.CORRUPT
OURS = "our own error"
EXACT = None

AT_SOURCE: list[tuple[str, KvLostReason | None]] = [
    ("kv.open=error@1", PEER),
    ("kv.open=stall@1", STALLED),
    ("kv.open=delay:0.05", EXACT),
    ("kv.announce=error@1", PEER),
    ("kv.announce=stall@1", STALLED),
    ("kv.send.frame=error@2", PEER),
    ("kv.send.frame=stall@2", STALLED),
    ("kv.send.frame=delay:0.02", EXACT),
    ("kv.send.frame=flip@2", EXACT),
    ("kv.send.frame=flip", CORRUPT),
    ("kv.send.frame=truncate@2", CORRUPT),
    ("kv.send.frame=duplicate@2", EXACT),
    ("kv.send.frame=drop@2", CORRUPT),
    ("kv.send.end=error@1", PEER),
    ("kv.send.end=stall@1", STALLED),
]
AT_SINK: list[tuple[str, KvLostReason | str | None]] = [
    ("kv.receive.segment=flip@2", EXACT),
    ("kv.receive.segment=flip", CORRUPT),
    ("kv.receive.segment=truncate@2", EXACT),
    ("kv.receive.segment=duplicate@2", EXACT),
    ("kv.receive.segment=drop@2", CORRUPT),
    ("kv.receive.segment=error@2", OURS),
    ("kv.receive.segment=delay:0.02", EXACT),
    ("kv.scatter=error@2", OURS),
    ("kv.scatter=delay:0.02", EXACT),
    ("kv.commit=error@1", OURS),
    ("kv.commit=delay:0.05", EXACT),
    ("kv.release=error@1", EXACT),
    ("kv.release=error", EXACT),
]


async def outcome(decode: Instance, prefill: Instance, sink: Sink) -> KvLostReason | str | None:
    """None once it is committed."""
    try:
        result = await fetched(decode, prefill, sink, NUM_TOKENS)
    except KvLost as error:
        return error.why
    except FailpointHit:
        sink.lose(sink.fence, 0.0)
        return OURS
    assert (result.token.token_id, result.token.position) == (7, 0)
    return EXACT


async def check(at_source: str, at_sink: str, want: KvLostReason | str | None) -> None:
    """A lost handoff is had again from the same lease, where nothing is planted."""
    # A second: less is reached where a busy machine stops everybody for a moment.
    config = replace(QUICK, progress_timeout_s=1.0, lease_ttl_s=8.0, max_segment_bytes=4096)
    async with (
        instance(config=replace(config, failpoints=at_source)) as prefill,
        instance(config=replace(config, failpoints=at_sink)) as decode,
        instance(config=config) as well,
    ):
        kv = prefill.prefill(NUM_TOKENS)
        sink = decode.sink()
        assert await outcome(decode, prefill, sink) == want
        if want is EXACT:
            assert decode.take(sink) == kv
        else:
            sink.stop()
        # Whatever it was, it was that handoff's alone.
        if not at_sink:
            other_kv, other = well.prefill(NUM_TOKENS), decode.sink()
            assert await outcome(decode, well, other) is EXACT
            assert decode.take(other) == other_kv
        for one in (prefill, well):
            one.book.release(ID, Fence(9, 9), committed=False)
            await until(lambda one=one: not one.book.num_fetches)  # type: ignore[misc]
            one.assert_no_leak()
        decode.assert_no_leak()


@pytest.mark.parametrize(("text", "want"), AT_SOURCE, ids=[text for text, _ in AT_SOURCE])
async def test_at_the_source(text: str, want: KvLostReason | None) -> None:
    await check(text, "", want)


@pytest.mark.parametrize(("text", "want"), AT_SINK, ids=[text for text, _ in AT_SINK])
async def test_at_the_sink(text: str, want: KvLostReason | str | None) -> None:
    await check("", text, want)


def test_every_place_is_hit() -> None:
    planted = {text.partition("=")[0] for text, _ in (*AT_SOURCE, *AT_SINK)}
    assert planted == set(PLACES)


def test_a_config_with_a_misspelt_place_is_refused() -> None:
    problems = list(HandoffConfig(failpoints="kv.sned=error").problems())
    assert len(problems) == 1
    assert "no such place" in problems[0]
    with pytest.raises(ConfigError):
        Failpoints.parse("kv.sned=error")
