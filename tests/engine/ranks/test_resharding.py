"""KV that leaves an instance of one layout reaches every rank of another, whatever their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.model_spec import DTYPE_BYTES, ModelSpec
from core.parallel import ParallelLayout, RankPlace, layout_problems, shard_of
from engine import copies
from engine.cpu.copy_kernels import Int64s, Rows, copy_runs
from engine.kv_cache import KvCache
from engine.ranks.shared_kv import SpreadKv

Values = npt.NDArray[np.uint64]
RunArrays = tuple[Int64s, Int64s, Int64s]

SPEC = ModelSpec(
    name="shape",
    architecture="LlamaForCausalLM",
    num_layers=8,
    num_query_heads=8,
    num_kv_heads=8,
    head_dim=4,  # in which a 64-bit value fits, in 16 bits an element
    hidden_size=32,
    vocab_size=300,
    max_context_tokens=512,
    eos_token_ids=(),
    dtype="bfloat16",
    weights_digest="",
)
UNEVEN = replace(SPEC, num_layers=10, num_query_heads=9, num_kv_heads=3)
TOKENS = range(11, 38)
"""Begin and end inside of blocks, of 16 as of 32 tokens, and not where 16 bytes do."""
NUM_TOKENS = 48
"""What source and target have blocks for; those outside of TOKENS must not move."""
NUM_SPARE_BLOCKS = 2
"""Not of the request."""
ALL_LAYOUTS = [ParallelLayout(tp=tp, pp=pp) for tp in range(1, 9) for pp in range(1, 9)]


@dataclass(frozen=True, slots=True)
class Instance:
    """All ranks of an instance, each with memory of its own, and the blocks of one request."""

    parts: tuple[KvCache, ...]
    kv: SpreadKv
    block_ids: tuple[int, ...]

    @property
    def slots(self) -> list[int]:
        """Of the request's tokens, in their order."""
        size = self.kv.block_size
        return [self.block_ids[t // size] * size + t % size for t in range(NUM_TOKENS)]


def parts_of(
    spec: ModelSpec, layout: ParallelLayout, block_size: int, num_blocks: int
) -> tuple[KvCache, ...]:
    shards = [shard_of(spec, RankPlace(layout=layout, rank=r)) for r in range(layout.num_workers)]
    return tuple(
        KvCache(spec, num_blocks=num_blocks, block_size=block_size, shard=shard) for shard in shards
    )


def instance(spec: ModelSpec, layout: ParallelLayout, block_size: int) -> Instance:
    """With blocks that are neighbours, but for the first one; all zeros."""
    num_used = -(-NUM_TOKENS // block_size)
    parts = parts_of(spec, layout, block_size, num_used + NUM_SPARE_BLOCKS)
    return Instance(parts, SpreadKv(spec, parts), (num_used, *range(1, num_used)))


def values(spec: ModelSpec, salt: int) -> Values:
    """[layer, k/v, token, head]: no two alike, in one salt or in two."""
    shape = spec.num_layers, 2, NUM_TOKENS, spec.num_kv_heads
    numbers = np.arange(1, 1 + np.prod(shape), dtype=np.uint64).reshape(shape)
    return numbers + np.uint64(salt << 32)


def words(part: KvCache) -> Values:
    """What a rank holds, sharing its memory: [layer, k/v, slot, head, 64-bit word]."""
    return part.data.view(torch.uint8).numpy().view(np.uint64)


def own(part: KvCache, held: Values) -> Values:
    """A rank's part of `held`; every word of a head is another."""
    layers, heads = part.shard.layers, part.shard.kv_heads
    picked = held[layers.start : layers.stop, :, :, heads.start : heads.stop, None]
    return (picked << np.uint64(3)) | np.arange(words(part).shape[-1], dtype=np.uint64)


def compute(where: Instance, held: Values) -> None:
    """Each rank writes its own layers and heads of the request, as a step does."""
    for part in where.parts:
        words(part)[:, :, where.slots] = own(part, held)


def check(where: Instance, held: Values) -> None:
    """Every rank holds its part of `held`, and zeros in all slots that are not the request's."""
    others = sorted(set(range(where.kv.num_blocks * where.kv.block_size)) - set(where.slots))
    for part in where.parts:
        assert (words(part)[:, :, where.slots] == own(part, held)).all()
        assert not words(part)[:, :, others].any()


def payloads(source: Instance, cuts: Sequence[range], tokens: range = TOKENS) -> list[bytes]:
    """As segments, each of some layers."""
    return [bytes(source.kv.gather(layers, source.block_ids, tokens)) for layers in cuts]


def receive(
    target: Instance, cuts: Sequence[range], sent: Sequence[bytes], tokens: range = TOKENS
) -> None:
    for layers, payload in zip(cuts, sent, strict=True):
        target.kv.scatter(layers, target.block_ids, tokens, memoryview(payload))


def expected(spec: ModelSpec, tokens: range = TOKENS) -> Values:
    """What the target held, and `tokens` as the source has them."""
    moved = values(spec, salt=2)
    place = slice(tokens.start, tokens.stop)
    moved[:, :, place] = values(spec, salt=1)[:, :, place]
    return moved


def layouts_of(spec: ModelSpec) -> list[ParallelLayout]:
    return [layout for layout in ALL_LAYOUTS if not list(layout_problems(spec, layout))]


SHAPES = [
    # id                          spec                                num layouts
    ("as many heads as ranks", SPEC, 64),
    ("4 KV heads, 8 ranks have 4", replace(SPEC, num_kv_heads=4), 40),
    ("2 KV heads", replace(SPEC, num_kv_heads=2), 32),
    ("1 KV head", replace(SPEC, num_kv_heads=1), 32),
    ("9:3 heads, 10 layers", UNEVEN, 24),
]
BLOCK_SIZES = [(16, 16), (16, 32), (32, 16)]
each_shape = pytest.mark.parametrize("spec", [s[1] for s in SHAPES], ids=[s[0] for s in SHAPES])


@pytest.mark.parametrize(("spec", "want"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_layouts_are_those_that_the_shape_allows(spec: ModelSpec, want: int) -> None:
    """Otherwise the law would hold of fewer than we believe."""
    assert len(layouts_of(spec)) == want


@pytest.mark.parametrize("sizes", BLOCK_SIZES, ids=lambda sizes: f"{sizes[0]} to {sizes[1]}")
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@each_shape
def test_every_layout_to_every_layout(spec: ModelSpec, dtype: str, sizes: tuple[int, int]) -> None:
    """On every rank that holds a (layer, head), at its slot, and nothing else has changed.

    All sources send the same bytes, and each target takes them well: so does every pair.
    """
    spec = replace(spec, dtype=dtype)
    cuts = [range(3), range(3, spec.num_layers)]  # where not every stage ends
    sent: set[tuple[bytes, ...]] = set()
    for layout in layouts_of(spec):
        source = instance(spec, layout, sizes[0])
        compute(source, values(spec, salt=1))
        sent.add(tuple(payloads(source, cuts)))
    assert len(sent) == 1
    for layout in layouts_of(spec):
        target = instance(spec, layout, sizes[1])
        compute(target, values(spec, salt=2))
        receive(target, cuts, next(iter(sent)))
        check(target, expected(spec))


@settings(max_examples=60, deadline=None)  # the first example may compile
@given(data=st.data())
def test_any_pair_any_tokens_any_cut(data: st.DataObject) -> None:
    """From one instance straight to another."""
    spec = replace(
        data.draw(st.sampled_from([s[1] for s in SHAPES])),
        dtype=data.draw(st.sampled_from(sorted(DTYPE_BYTES))),
    )
    pick = st.sampled_from(layouts_of(spec))
    sizes = data.draw(st.sampled_from(BLOCK_SIZES))
    source, target = (instance(spec, data.draw(pick), size) for size in sizes)
    start = data.draw(st.integers(0, NUM_TOKENS))
    tokens = range(start, data.draw(st.integers(start, NUM_TOKENS)))
    edge = data.draw(st.integers(0, spec.num_layers))
    cuts = [range(edge), range(edge, spec.num_layers)]
    compute(source, values(spec, salt=1))
    compute(target, values(spec, salt=2))
    receive(target, cuts, payloads(source, cuts, tokens), tokens)
    check(target, expected(spec, tokens))
    check(source, values(spec, salt=1))


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces each call of the kernel copied: one for each run, in each plane."""
    counted: list[int] = []

    def count(target: Rows, source: Rows, runs: RunArrays, num_planes: int, size: int) -> None:
        counted.append(num_planes * len(runs[0]))
        copy_runs(target, source, runs, num_planes, size)

    monkeypatch.setattr(copies, "copy_runs", count)
    return counted


TABLES = [
    # id                   blocks                  runs
    ("neighbours", tuple(range(8)), 1),
    ("two neighbourhoods", (4, 5, 6, 7, 0, 1, 2, 3), 2),
    ("strangers", (7, 5, 3, 1, 6, 4, 2, 0), 8),
]


@pytest.mark.parametrize("layout", ["1x1", "3x2", "4x8", "8x4"])
@pytest.mark.parametrize(("table", "num_runs"), [t[1:] for t in TABLES], ids=[t[0] for t in TABLES])
def test_pieces_grow_with_layers_heads_groups_and_runs(
    pieces: list[int], layout: str, table: tuple[int, ...], num_runs: int
) -> None:
    """And not with tokens: neighbouring blocks are one piece however many they are."""
    spec, ranks = replace(SPEC, num_kv_heads=4), ParallelLayout.parse(layout)
    num_kept = spec.num_layers * ranks.tp * 2 * num_runs
    num_read = spec.num_layers * min(ranks.tp, spec.num_kv_heads) * 2 * num_runs
    layers = range(spec.num_layers)
    for block_size in (1, 3, 16, 64):
        kv = SpreadKv(spec, parts_of(spec, ranks, block_size, num_blocks=8))
        tokens = range(8 * block_size)
        pieces.clear()
        payload = kv.gather(layers, table, tokens)
        assert sum(pieces) == num_read
        assert len(pieces) <= ranks.num_workers
        pieces.clear()
        kv.scatter(layers, table, tokens, payload)
        assert sum(pieces) == num_kept
        assert len(pieces) == ranks.num_workers
