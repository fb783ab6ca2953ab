"""The digest: one number whatever the cut, another one for any other KV or place."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.kv_layout import KvRange
from core.paths import user_cache_dir
from kv_transfer.digest import _digest, kv_digest, warm_up
from kv_transfer.jit import kernel

MASK = 2**64 - 1
NUM_TOKENS = 9


@dataclass(frozen=True)
class Shape:
    """Of head vectors on the wire."""

    num_layers: int = 3
    num_heads: int = 2
    head_bytes: int = 32


BASE = Shape()
SHAPES = [
    BASE,
    Shape(head_bytes=128),
    Shape(head_bytes=68),  # int8: whole words and a half
    Shape(head_bytes=6, num_heads=5),
    Shape(head_bytes=15),
    Shape(head_bytes=1),
]


def whole(shape: Shape) -> KvRange:
    return KvRange(range(shape.num_layers), range(NUM_TOKENS))


def kv_of(shape: Shape, seed: int = 0) -> np.ndarray:
    """[layer][K, V][token][head][byte]."""
    sizes = (shape.num_layers, 2, NUM_TOKENS, shape.num_heads, shape.head_bytes)
    return np.random.default_rng(seed).integers(0, 256, sizes, dtype=np.uint8)


def digest(kv: np.ndarray, piece: KvRange | None = None) -> int:
    num_layers, _, num_tokens, num_heads, head_bytes = kv.shape
    return kv_digest(
        memoryview(kv.tobytes()),
        head_bytes=head_bytes,
        num_heads=num_heads,
        piece=piece or KvRange(range(num_layers), range(num_tokens)),
    )


def cuts(random_: random.Random, parts: range) -> list[range]:
    """`parts` in random runs."""
    inner = range(parts.start + 1, parts.stop)
    edges = sorted(random_.sample(inner, random_.randint(0, len(inner))))
    edges = [parts.start, *edges, parts.stop]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Piece:
    """A segment: where its header puts it, and its payload."""

    range: KvRange
    kv: np.ndarray


def pieces_of(kv: np.ndarray, random_: random.Random) -> list[Piece]:
    """`kv` cut at random, in random order."""
    pieces = [
        Piece(
            KvRange(layers, tokens), kv[layers.start : layers.stop, :, tokens.start : tokens.stop]
        )
        for layers in cuts(random_, range(kv.shape[0]))
        for tokens in cuts(random_, range(NUM_TOKENS))
    ]
    random_.shuffle(pieces)
    return pieces


def total(pieces: list[Piece]) -> int:
    return sum(digest(piece.kv, piece.range) for piece in pieces) & MASK


seeds = st.integers(0, 2**32)
shapes = st.sampled_from(SHAPES)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, shape=shapes)
def test_any_cut_in_any_order_has_the_same_sum(seed: int, shape: Shape) -> None:
    kv = kv_of(shape, seed)
    assert total(pieces_of(kv, random.Random(seed))) == digest(kv)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, shape=shapes, data=st.data())
def test_a_flipped_bit_is_seen(seed: int, shape: Shape, data: st.DataObject) -> None:
    kv = kv_of(shape, seed)
    right = digest(kv)
    at = data.draw(st.integers(0, kv.size - 1))
    kv.reshape(-1)[at] ^= 1 << data.draw(st.integers(0, 7))
    assert digest(kv) != right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_flipped_bit_of_a_row_is_seen(shape: Shape) -> None:
    row = kv_of(shape)[:1, :, :1, :1].copy()
    right = digest(row)
    flat = row.reshape(-1)
    for at, bit in itertools.product(range(flat.size), range(8)):
        flat[at] ^= 1 << bit
        assert digest(row) != right
        flat[at] ^= 1 << bit
    assert digest(row) == right


@settings(max_examples=60, deadline=None)
@given(seed=seeds, shape=st.sampled_from(SHAPES[:-1]))
def test_two_segments_that_changed_places_are_seen(seed: int, shape: Shape) -> None:
    random_ = random.Random(seed)
    kv = kv_of(shape, seed)
    pieces = pieces_of(kv, random_)
    same_size = [
        (i, j)
        for i, j in itertools.combinations(range(len(pieces)), 2)
        if pieces[i].kv.shape == pieces[j].kv.shape
    ]
    for i, j in random_.sample(same_size, min(len(same_size), 3)):
        swapped = list(pieces)
        swapped[i] = replace(pieces[i], kv=pieces[j].kv)
        swapped[j] = replace(pieces[j], kv=pieces[i].kv)
        assert total(swapped) != digest(kv)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, shape=st.sampled_from(SHAPES[:-1]), data=st.data())
def test_two_head_vectors_that_changed_places_are_seen(
    seed: int, shape: Shape, data: st.DataObject
) -> None:
    kv = kv_of(shape, seed)
    right = digest(kv)
    rows = kv.reshape(-1, shape.head_bytes)
    i, j = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True))
    rows[[i, j]] = rows[[j, i]]
    assert digest(kv) != right


@settings(max_examples=60, deadline=None)
@given(seed=seeds, shape=shapes)
def test_a_segment_missing_or_taken_twice_is_seen(seed: int, shape: Shape) -> None:
    kv = kv_of(shape, seed)
    pieces = pieces_of(kv, random.Random(seed))
    right = total(pieces)
    assert total(pieces[1:]) != right
    assert total([*pieces, pieces[0]]) != right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", range(4), ids=["layers", "K and V", "tokens", "heads"])
def test_what_changed_places_is_seen(shape: Shape, axis: int) -> None:
    kv = kv_of(shape)
    assert digest(np.flip(kv, axis=axis)) != digest(kv)


PATTERNS = [
    # what happened to an element's bits, everywhere in a head vector
    ("all signs turned", lambda words: words ^ np.uint32(0x80000000)),
    ("a line stuck at 1", lambda words: words | np.uint32(0x80000000)),
    ("a line stuck at 0", lambda words: words & np.uint32(0x7FFFFFFF)),
    ("all bits turned", lambda words: ~words),
    ("pairs changed places", lambda words: words.reshape(-1, 2)[:, ::-1].reshape(-1)),
    ("shifted by one", lambda words: np.roll(words, 1)),
    ("back to front", lambda words: words[::-1]),
    ("nothing written", np.zeros_like),
]


@pytest.mark.parametrize("damage", [p[1] for p in PATTERNS], ids=[p[0] for p in PATTERNS])
def test_damage_with_a_pattern_is_seen(damage: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes that would cancel if words were only multiplied and added."""
    for seed in range(100):
        kv = kv_of(Shape(head_bytes=128), seed)
        right = digest(kv)
        row = kv[seed % 3, seed % 2, seed % NUM_TOKENS, 0].view(np.uint32)
        row[:] = damage(row.copy())
        assert digest(kv) != right


def test_two_flipped_top_bits_do_not_cancel() -> None:
    kv = np.zeros_like(kv_of(BASE))
    right = digest(kv)
    kv[0, 0, 0, 0, 7] ^= 0x80
    kv[0, 0, 0, 0, 15] ^= 0x80
    assert digest(kv) != right


def test_the_same_bytes_elsewhere_are_another_digest() -> None:
    kv = kv_of(BASE)[:1]
    first = digest(kv)
    assert first != digest(kv, KvRange(range(1, 2), range(NUM_TOKENS)))
    assert first != digest(kv, KvRange(range(1), range(1, NUM_TOKENS + 1)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neither_alignment_nor_the_kind_of_memory_matters(shape: Shape) -> None:
    kv = kv_of(shape)
    data = kv.tobytes()
    for offset in range(8):
        padding = b"x" * offset
        for held in (padding + data + b"y", bytearray(padding + data + b"y")):
            shifted = memoryview(held)[offset : offset + len(data)]
            got = kv_digest(
                shifted,
                head_bytes=shape.head_bytes,
                num_heads=shape.num_heads,
                piece=whole(shape),
            )
            assert got == digest(kv)


def plain_digest(kv: np.ndarray, piece: KvRange) -> int:
    """The same, in words of one syllable: what another implementation has to do."""
    total = 0
    for (layer, kind, token, head), _ in np.ndenumerate(kv[..., 0]):
        row = kv[layer, kind, token, head].tobytes().ljust(8, b"\0")
        mixed = 0
        # The rest of the row is a word too, zero when nothing is left.
        for i in range(0, len(row) + 1, 8):
            word = int.from_bytes(row[i : i + 8], "little")
            mixed += splitmix(word ^ (i // 8 + 1) * GOLDEN & MASK)
        layer, token = layer + piece.layers.start, token + piece.tokens.start
        place = layer << 49 | kind << 48 | token << 16 | head
        total += splitmix((mixed ^ place * GOLDEN) & MASK)
    return total & MASK


GOLDEN = 0x9E3779B97F4A7C15


def splitmix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_value_is_as_documented(shape: Shape) -> None:
    piece = KvRange(range(1, 3), range(2, 7))
    kv = kv_of(shape)[1:3, :, 2:7]
    assert digest(kv, piece) == plain_digest(kv, piece)


def test_the_highest_places_are_told_apart() -> None:
    kv = kv_of(BASE)[:1, :, :1]
    places = [
        KvRange(range(layer, layer + 1), range(token, token + 1))
        for layer in (0, 1, 2**15 - 1)
        for token in (0, 1, 2**16, 2**32 - 1)
    ]
    got = [digest(kv, place) for place in places]
    assert got == [plain_digest(kv, place) for place in places]
    assert len(set(got)) == len(places)


def test_the_value_is_part_of_the_contract() -> None:
    """Peers of one protocol version must agree: a change here raises the version."""
    kv = np.arange(128, dtype=np.uint8).reshape(1, 2, 1, 2, 32)
    piece = KvRange(range(1, 2), range(5, 6))
    assert digest(kv, piece) == 15101300711945609981


@pytest.mark.parametrize("num_bytes", [0, 64, 127, 129, 256])
def test_a_payload_of_another_size_is_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"{num_bytes} bytes for a place of 4 head vectors"):
        kv_digest(
            memoryview(bytes(num_bytes)),
            head_bytes=32,
            num_heads=2,
            piece=KvRange(range(1), range(1)),
        )


def test_warm_up_leaves_nothing_to_compile() -> None:
    compiled: Any = _digest
    warm_up()
    for shape in SHAPES:
        digest(kv_of(shape))
    assert len(compiled.signatures) == 1


def test_other_packages_kernels_are_kept_where_they_want() -> None:
    """numba has one cache folder for the process; ours is set only while a kernel is declared."""
    config: Any = numba.config
    before = config.CACHE_DIR
    for theirs in ("", "/somewhere/else"):
        try:
            config.CACHE_DIR = theirs
            declared: Any = kernel(lambda value: value + 1)
            assert theirs == config.CACHE_DIR
        finally:
            config.CACHE_DIR = before
        assert str(user_cache_dir() / "kernels") in declared.stats.cache_path
