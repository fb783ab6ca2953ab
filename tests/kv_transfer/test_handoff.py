"""Whole handoffs over real gRPC: the bytes arrive, once, and nothing is left behind."""

import asyncio
from dataclasses import replace

import pytest

from core.kv_layout import KvLayout
from core.request import Fence
from kv_transfer.source import Outcome
from tests.kv_transfer.support import FIRST, QUICK, SMALL, fetched, instance, until

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
