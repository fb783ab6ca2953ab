"""The digest: one number whatever the cut, another one for any other KV or place."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.kv_layout import KvLayout, KvRange
from core.model_spec import DTYPE_BYTES
from kv_transfer.digest import kv_digest, segment_checksum

MASK = 2**64 - 1
BASE = KvLayout(num_layers=3, num_kv_heads=2, head_dim=8, dtype="float32", block_size=4)
LAYOUTS = [
    BASE,
    replace(BASE, dtype="bfloat16", head_dim=64),
    replace(BASE, dtype="float16", head_dim=3, num_kv_heads=5),
    replace(BASE, head_dim=1),
]
NUM_TOKENS = 9


def whole(layout: KvLayout) -> KvRange:
    return KvRange(range(layout.num_layers), range(NUM_TOKENS))


def kv_of(layout: KvLayout, seed: int = 0) -> np.ndarray:
    """[layer][K, V][token][head][byte]."""
    shape = (
        *(layout.num_layers, 2, NUM_TOKENS, layout.num_kv_heads),
        layout.head_dim * DTYPE_BYTES[layout.dtype],
    )
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def digest(kv: np.ndarray, layout: KvLayout, piece: KvRange | None = None) -> int:
    return kv_digest(memoryview(kv.tobytes()), layout, piece or whole(layout))


def cuts(random_: random.Random, parts: range) -> list[range]:
    """`parts` in random runs."""
    inner = range(parts.start + 1, parts.stop)
    edges = sorted(random_.sample(inner, random_.randint(0, len(inner))))
    edges = [parts.start, *edges, parts.stop]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), layout=st.sampled_from(LAYOUTS))
def test_any_cut_in_any_order_has_the_same_sum(seed: int, layout: KvLayout) -> None:
    random_ = random.Random(seed)
    kv = kv_of(layout, seed)
    pieces = [
        KvRange(layers, tokens)
        for layers in cuts(random_, range(layout.num_layers))
        for tokens in cuts(random_, range(NUM_TOKENS))
    ]
    random_.shuffle(pieces)
    total = 0
    for piece in pieces:
        layers, tokens = piece.layers, piece.tokens
        part = kv[layers.start : layers.stop, :, tokens.start : tokens.stop]
        total += digest(part, layout, piece)
    assert total & MASK == digest(kv, layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_flipped_bit_is_seen(layout: KvLayout) -> None:
    kv = kv_of(layout)
    right = digest(kv, layout)
    flat = kv.reshape(-1)
    for at in range(0, flat.size, max(1, flat.size // 500)):
        for bit in range(8):
            flat[at] ^= 1 << bit
            assert digest(kv, layout) != right
            flat[at] ^= 1 << bit
    assert digest(kv, layout) == right


def test_two_flipped_top_bits_do_not_cancel() -> None:
    kv = np.zeros_like(kv_of(BASE))
    right = digest(kv, BASE)
    kv[0, 0, 0, 0, 7] ^= 0x80
    kv[0, 0, 0, 0, 15] ^= 0x80
    assert digest(kv, BASE) != right


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("axis", range(4), ids=["layers", "K and V", "tokens", "heads"])
def test_what_changed_places_is_seen(layout: KvLayout, axis: int) -> None:
    kv = kv_of(layout)
    swapped = np.flip(kv, axis=axis)
    assert digest(swapped, layout) != digest(kv, layout)


def test_the_same_bytes_elsewhere_are_another_digest() -> None:
    kv = kv_of(BASE)[:1]
    first = digest(kv, BASE, KvRange(range(1), range(NUM_TOKENS)))
    assert first != digest(kv, BASE, KvRange(range(1, 2), range(NUM_TOKENS)))
    assert first != digest(kv, BASE, KvRange(range(1), range(1, NUM_TOKENS + 1)))


def test_alignment_does_not_matter() -> None:
    data = kv_of(BASE).tobytes()
    for offset in range(8):
        shifted = memoryview(b"x" * offset + data)[offset:]
        assert kv_digest(shifted, BASE, whole(BASE)) == digest(kv_of(BASE), BASE)


def plain_digest(kv: np.ndarray, piece: KvRange) -> int:
    """The same, in words of one syllable: what another implementation has to do."""
    total = 0
    for (layer, kind, token, head), _ in np.ndenumerate(kv[..., 0]):
        words = kv[layer, kind, token, head].tobytes()
        mixed = 0
        for i in range(0, len(words), 8):
            word = int.from_bytes(words[i : i + 8], "little")
            mixed += (word ^ word >> 32) * (splitmix(i // 8 + 1) | 1)
        layer, token = layer + piece.layers.start, token + piece.tokens.start
        place = layer << 49 | kind << 48 | token << 16 | head
        total += splitmix((mixed ^ place * 0x9E3779B97F4A7C15) & MASK)
    return total & MASK


def splitmix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_value_is_as_documented(layout: KvLayout) -> None:
    piece = KvRange(range(1, 3), range(2, 7))
    kv = kv_of(layout)[1:3, :, 2:7]
    assert digest(kv, layout, piece) == plain_digest(kv, piece)


def test_the_value_is_part_of_the_contract() -> None:
    """Peers of one protocol version must agree: a change here raises the version."""
    kv = np.arange(BASE.layer_bytes_per_token, dtype=np.uint8)
    piece = KvRange(range(1, 2), range(5, 6))
    assert kv_digest(kv.data, BASE, piece) == 17035131746287552069
    assert segment_checksum(memoryview(b"baton")) == 11500410701984736902


def test_a_payload_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="2 head vectors for a place of 4"):
        kv_digest(memoryview(bytes(64)), BASE, KvRange(range(1), range(1)))
