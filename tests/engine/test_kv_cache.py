"""Bytes leave and enter the paged cache in payload order, for every dtype and table."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.model_spec import DTYPE_BYTES, ModelSpec
from engine.copies import HostCopier, Runs, slot_runs
from engine.cpu import copy_kernels
from engine.cuda.copies import DeviceCopier
from engine.kv_cache import KvCache

SPEC = ModelSpec(
    name="shape",
    architecture="LlamaForCausalLM",
    num_layers=3,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_size=32,
    vocab_size=300,
    max_context_tokens=512,
    eos_token_ids=(),
    dtype="float32",
    weights_digest="",
)
BLOCK_SIZE = 4
TABLE = (7, 2, 3, 9, 0)


def random_cache(dtype: str = "float32", block_size: int = BLOCK_SIZE, seed: int = 0) -> KvCache:
    cache = KvCache(replace(SPEC, dtype=dtype), num_blocks=12, block_size=block_size)
    generator = torch.Generator().manual_seed(seed)
    cache.data.copy_(torch.randn(cache.data.shape, generator=generator))
    return cache


def token_by_token(cache: KvCache, layers: range, table: Sequence[int], tokens: range) -> bytes:
    """The contract, spelled out."""
    slots = [table[t // cache.block_size] * cache.block_size + t % cache.block_size for t in tokens]
    picked = cache.data[layers.start : layers.stop][:, :, slots]
    return picked.contiguous().view(torch.uint8).numpy().tobytes()


def bounds_of(runs: Runs) -> list[tuple[int, int]]:
    """First and one past the last slot of each run."""
    return [
        (first, first + n) for first, _, n in zip(*(part.tolist() for part in runs), strict=True)
    ]


RUNS = [
    # id                     tokens          want
    ("nothing", range(5, 5), []),
    ("inside a block", range(1, 3), [(29, 31)]),
    ("neighbours join", range(4, 12), [(8, 16)]),
    ("all", range(20), [(28, 32), (8, 16), (36, 40), (0, 4)]),
    ("ragged ends", range(3, 14), [(31, 32), (8, 16), (36, 38)]),
]


@pytest.mark.parametrize(("tokens", "want"), [r[1:] for r in RUNS], ids=[r[0] for r in RUNS])
def test_slot_runs(tokens: range, want: list[tuple[int, int]]) -> None:
    assert bounds_of(slot_runs(TABLE, tokens, block_size=BLOCK_SIZE, num_blocks=10)) == want


@given(
    table=st.permutations(range(8)),
    block_size=st.integers(1, 5),
    bounds=st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
def test_runs_name_every_slot_in_order(
    table: list[int], block_size: int, bounds: tuple[int, int]
) -> None:
    tokens = range(min(bounds), min(max(bounds), 8 * block_size))
    found = slot_runs(table, tokens, block_size=block_size, num_blocks=8)
    runs = bounds_of(found)
    slots = [slot for start, stop in runs for slot in range(start, stop)]
    lengths = [stop - start for start, stop in runs]
    assert found.places.tolist() == [sum(lengths[:i]) for i in range(len(lengths))]
    assert slots == [table[t // block_size] * block_size + t % block_size for t in tokens]
    assert all(a[1] != b[0] for a, b in pairwise(runs)), "not coalesced"


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("layers", [range(3), range(1, 2), range(2, 2)])
@pytest.mark.parametrize("tokens", [range(20), range(3, 14), range(6, 7), range(4, 4)])
def test_gather_is_in_payload_order(dtype: str, layers: range, tokens: range) -> None:
    cache = random_cache(dtype)
    got = cache.gather(layers, TABLE, tokens)
    assert got.c_contiguous
    assert got.format == "B"
    assert got.nbytes == cache.payload_bytes(len(layers), len(tokens))
    assert got.tobytes() == token_by_token(cache, layers, TABLE, tokens)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_round_trip_between_different_caches(dtype: str) -> None:
    source, target = random_cache(dtype), random_cache(dtype, block_size=3, seed=1)
    before = target.data.clone()
    moved_to, tokens = (11, 4, 6, 5, 1, 0, 2), range(3, 19)
    for layer in range(3):
        layers = range(layer, layer + 1)
        payload = source.gather(layers, TABLE, tokens)
        target.scatter(layers, moved_to, tokens, payload)
    want = source.gather(range(3), TABLE, tokens).tobytes()
    assert target.gather(range(3), moved_to, tokens).tobytes() == want
    written = [moved_to[t // 3] * 3 + t % 3 for t in tokens]
    others = [slot for slot in range(36) if slot not in written]
    assert torch.equal(target.data[:, :, others], before[:, :, others])


def test_payload_may_be_readonly_and_unaligned() -> None:
    source, target = random_cache(), random_cache(seed=1)
    payload = source.gather(range(3), TABLE, range(20)).tobytes()
    message = memoryview(b"hdr" + payload)
    target.scatter(range(3), TABLE, range(20), message[3:])
    assert target.gather(range(3), TABLE, range(20)).tobytes() == payload


def test_gather_into_fills_memory_that_is_there() -> None:
    """Unaligned, and nothing beside it."""
    cache, room = random_cache(), bytearray(1920 + 10)
    cache.gather_into(range(3), TABLE, range(3, 8), memoryview(room)[3:-7])
    assert bytes(room[3:-7]) == token_by_token(cache, range(3), TABLE, range(3, 8))
    assert not any(room[:3] + room[-7:])


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_both_copiers_move_the_same_bytes(dtype: str) -> None:
    cache, layers = random_cache(dtype), slice(1, 3)
    runs = slot_runs(TABLE, range(3, 14), block_size=BLOCK_SIZE, num_blocks=12)
    host, device = HostCopier(cache.data), DeviceCopier(cache.data)
    got, payload = (np.empty((4, 11, cache.payload_bytes(1, 1) // 2), np.uint8) for _ in range(2))
    host.read(layers, runs, payload)
    device.read(layers, runs, got)
    assert np.array_equal(got, payload)
    cache.data[1:3] = 0
    device.write(layers, runs, payload)
    host.read(layers, runs, got)
    assert np.array_equal(got, payload)


def test_kernels_are_compiled_before_the_first_copy() -> None:
    """Once: by what a model's load calls, and by no request."""
    copy_kernels.compile_kernels()
    kernels: list[Any] = [copy_kernels.copy_runs, copy_kernels.are_inside]
    known = [list(kernel.signatures) for kernel in kernels]
    source, target = random_cache(), random_cache(seed=1)
    payload = source.gather(range(3), TABLE, range(3, 14))
    target.scatter(range(3), TABLE, range(3, 14), payload.toreadonly())
    assert [len(signatures) for signatures in known] == [1, 1]
    assert [list(kernel.signatures) for kernel in kernels] == known


COPIES = [
    # id                   pairs
    ("nothing", []),
    ("one", [(7, 3)]),
    ("one source, two targets", [(7, 3), (7, 0)]),
    ("a swap", [(7, 3), (3, 7)]),
    ("a chain", [(7, 3), (3, 5), (5, 11)]),
    ("to itself", [(7, 7)]),
]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("pairs", [c[1] for c in COPIES], ids=[c[0] for c in COPIES])
def test_blocks_are_copied_whole_and_at_once(dtype: str, pairs: list[tuple[int, int]]) -> None:
    """In all layers, from what every source held before; other blocks stay as they were."""
    cache = random_cache(dtype)
    before = [block_bytes(cache, block_id) for block_id in range(12)]
    cache.copy_blocks(pairs)
    sources = {target: source for source, target in pairs}
    want = [before[sources.get(block_id, block_id)] for block_id in range(12)]
    assert [block_bytes(cache, block_id) for block_id in range(12)] == want


def block_bytes(cache: KvCache, block_id: int) -> bytes:
    return cache.gather(range(3), (block_id,), range(BLOCK_SIZE)).tobytes()


Misuse = Callable[[KvCache], object]
MISUSES: list[tuple[str, Misuse, str]] = [
    ("short table", lambda c: c.gather(range(3), (1,), range(5)), "up to 5 in 1 blocks of 4"),
    ("layer beyond", lambda c: c.gather(range(1, 4), TABLE, range(5)), "the 3 layers"),
    ("strided", lambda c: c.gather(range(3), TABLE, range(0, 8, 2)), "token positions"),
    (
        "short payload",
        lambda c: c.scatter(range(3), TABLE, range(5), memoryview(b"1234")),
        "payload of 4 bytes for KV of 1920",
    ),
    (
        "little room",
        lambda c: c.gather_into(range(3), TABLE, range(5), memoryview(bytearray(1919))),
        "payload of 1919 bytes for KV of 1920",
    ),
    (
        "no room",
        lambda c: c.gather_into(range(3), TABLE, range(5), memoryview(bytes(1920))),
        "read-only",
    ),
    ("no such block", lambda c: c.gather(range(3), (7, 12), range(5)), "7 to 12 are not all in 12"),
    ("negative block", lambda c: c.gather(range(3), (-1, 3), range(2)), "-1 to -1 are not"),
    ("two into one", lambda c: c.copy_blocks([(1, 2), (3, 2)]), "copied into one: 2"),
    ("no such source", lambda c: c.copy_blocks([(12, 2)]), "block 12 of 12 cannot"),
    ("no such target", lambda c: c.copy_blocks([(1, -1)]), "block -1 of 12 cannot"),
]


@pytest.mark.parametrize(
    ("misuse", "message"), [m[1:] for m in MISUSES], ids=[m[0] for m in MISUSES]
)
def test_misuse_is_refused(misuse: Misuse, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse(random_cache())


def test_threads_copy_different_blocks_at_once() -> None:
    source, target = random_cache(), random_cache(seed=1)

    def copy(block_id: int) -> None:
        for _ in range(50):
            payload = source.gather(range(3), (block_id,), range(BLOCK_SIZE))
            target.scatter(range(3), (block_id,), range(BLOCK_SIZE), payload)

    threads = [threading.Thread(target=copy, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30.0)
    assert torch.equal(target.data[:, :, : 8 * BLOCK_SIZE], source.data[:, :, : 8 * BLOCK_SIZE])


def test_payload_of_a_token_covers_all_layers() -> None:
    cache = random_cache("bfloat16")
    assert cache.payload_bytes(3, 1) == 2 * 3 * 2 * 8 * 2
