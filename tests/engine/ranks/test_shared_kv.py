"""KV spread over ranks reads and writes as if one cache held it all."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.model_spec import DTYPE_BYTES, ModelSpec
from core.parallel import ParallelLayout, RankPlace, Shard, shard_of
from engine.kv_cache import KvCache, kv_bytes
from engine.ranks.shared_kv import SpreadKv, map_shared, shared_file

SPEC = ModelSpec(
    name="shape",
    architecture="LlamaForCausalLM",
    num_layers=3,
    num_query_heads=12,
    num_kv_heads=3,
    head_dim=8,
    hidden_size=96,
    vocab_size=300,
    max_context_tokens=512,
    eos_token_ids=(),
    dtype="float32",
    weights_digest="",
)
NUM_BLOCKS = 12
BLOCK_SIZE = 4
TABLE = (7, 2, 3, 9, 0)
LAYOUTS = [(1, 1), (2, 1), (3, 1), (6, 1), (12, 1), (1, 2), (1, 3), (2, 2), (6, 3)]
"""More ranks than KV heads, uneven heads, uneven layers."""
each_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: "x".join(map(str, layout))
)


def zero_cache(
    spec: ModelSpec = SPEC, shard: Shard | None = None, memory: torch.Tensor | None = None
) -> KvCache:
    return KvCache(spec, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, shard=shard, memory=memory)


def parts_of(spec: ModelSpec, layout: tuple[int, int]) -> list[KvCache]:
    tp, pp = layout
    whole = ParallelLayout(tp=tp, pp=pp)
    shards = [shard_of(spec, RankPlace(layout=whole, rank=rank)) for rank in range(tp * pp)]
    return [zero_cache(spec, shard) for shard in shards]


def spread_like(whole: KvCache, spec: ModelSpec, layout: tuple[int, int]) -> SpreadKv:
    """What the ranks of `layout` hold when together they hold what `whole` does."""
    parts = parts_of(spec, layout)
    for part in parts:
        layers, heads = part.shard.layers, part.shard.kv_heads
        part.data.copy_(whole.data[layers.start : layers.stop][:, :, :, heads.start : heads.stop])
    return SpreadKv(spec, parts)


def random_cache(spec: ModelSpec = SPEC, seed: int = 0) -> KvCache:
    cache = zero_cache(spec)
    generator = torch.Generator().manual_seed(seed)
    cache.data.copy_(torch.randn(cache.data.shape, generator=generator))
    return cache


@each_layout
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("layers", [range(3), range(1, 2), range(1, 3), range(2, 2)])
@pytest.mark.parametrize("tokens", [range(20), range(3, 14), range(4, 4)])
def test_gather_equals_one_cache(
    dtype: str, layout: tuple[int, int], layers: range, tokens: range
) -> None:
    spec = replace(SPEC, dtype=dtype)
    whole = random_cache(spec)
    spread = spread_like(whole, spec, layout)
    got = spread.gather(layers, TABLE, tokens)
    assert got.c_contiguous
    assert got.format == "B"
    assert got.nbytes == spread.payload_bytes(len(layers), len(tokens))
    assert got == whole.gather(layers, TABLE, tokens)
    room = bytearray(got.nbytes + 8)
    spread.gather_into(layers, TABLE, tokens, memoryview(room)[3:-5])
    assert room[3:-5] == got
    assert not any(room[:3] + room[-5:])


@each_layout
@pytest.mark.parametrize("target_layout", [(1, 1), (2, 2), (12, 1)])
def test_scatter_writes_every_copy_and_nothing_else(
    layout: tuple[int, int], target_layout: tuple[int, int]
) -> None:
    source, old = random_cache(), random_cache(seed=1)
    spread = spread_like(source, SPEC, layout)
    parts = parts_of(SPEC, target_layout)
    target = SpreadKv(SPEC, parts)
    target.scatter(range(3), range(12), range(48), old.gather(range(3), range(12), range(48)))
    tokens = range(3, 19)
    for layer in range(3):
        layers = range(layer, layer + 1)
        payload = bytes(spread.gather(layers, TABLE, tokens))
        target.scatter(layers, TABLE, tokens, memoryview(b"hdr" + payload)[3:])
        old.scatter(layers, TABLE, tokens, memoryview(payload))
    for part in parts:
        layers, heads = part.shard.layers, part.shard.kv_heads
        want = old.data[layers.start : layers.stop][:, :, :, heads.start : heads.stop]
        assert torch.equal(part.data, want)


@given(
    layout=st.sampled_from(LAYOUTS),
    table=st.permutations(range(12)),
    bounds=st.tuples(st.integers(0, 48), st.integers(0, 48)),
    layers=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_round_trip(
    layout: tuple[int, int], table: list[int], bounds: tuple[int, int], layers: tuple[int, int]
) -> None:
    tokens, run = range(min(bounds), max(bounds)), range(min(layers), max(layers))
    whole = random_cache()
    spread, empty = spread_like(whole, SPEC, layout), SpreadKv(SPEC, parts_of(SPEC, layout))
    payload = spread.gather(run, table, tokens)
    empty.scatter(run, table, tokens, payload)
    assert empty.gather(run, table, tokens) == payload == whole.gather(run, table, tokens)


MISUSES = [
    ("short table", range(3), (1,), range(5), "up to 5 in 1 blocks of 4"),
    ("layer beyond", range(1, 4), TABLE, range(5), "the 3 layers"),
    ("strided", range(3), TABLE, range(0, 8, 2), "token positions"),
    ("short payload", range(3), TABLE, range(5), "payload of 4 bytes for KV of 2880"),
]


@pytest.mark.parametrize(
    ("layers", "table", "tokens", "message"), [m[1:] for m in MISUSES], ids=[m[0] for m in MISUSES]
)
def test_misuse_is_refused(
    layers: range, table: tuple[int, ...], tokens: range, message: str
) -> None:
    spread = SpreadKv(SPEC, parts_of(SPEC, (2, 2)))
    with pytest.raises(ValueError, match=message):
        spread.scatter(layers, table, tokens, memoryview(b"1234"))


def test_two_mappings_are_one_memory() -> None:
    """As in the leader and in a rank; the file need not stay open."""
    shard = shard_of(SPEC, RankPlace())
    num_bytes = kv_bytes(SPEC, shard, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    with shared_file(num_bytes) as descriptor:
        one, other = (map_shared(descriptor, num_bytes) for _ in range(2))
    caches = [zero_cache(memory=memory) for memory in (one, other)]
    assert not caches[0].data.any()
    caches[0].data.copy_(random_cache().data)
    assert torch.equal(caches[1].data, random_cache().data)
