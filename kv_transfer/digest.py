"""Checksums of segments, and a digest of KV that no way of cutting it changes."""

from typing import TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from core.kv_layout import KvLayout, KvRange
from core.model_spec import DTYPE_BYTES

_U64: TypeAlias = NDArray[np.uint64]

_WORD_BYTES = 8
_SLAB_BYTES = 256 * 1024
"""Hashed at a time, so that the passes over it stay in the second-level cache."""
_GOLDEN = 0x9E3779B97F4A7C15


def segment_checksum(payload: memoryview) -> int:
    """xxh3-64 of a segment's bytes."""
    return xxhash.xxh3_64_intdigest(payload)


def kv_digest(payload: memoryview, layout: KvLayout, piece: KvRange) -> int:
    """Sum modulo 2⁶⁴ of one hash per (layer, K or V, token, head), each keyed by its place.

    A sum, so that any cut and order of the same KV gives the same total; keyed, so that KV in a
    wrong place does not. It guards against our mistakes and accidents, not against forgers.
    """
    head_bytes = layout.head_dim * DTYPE_BYTES[layout.dtype]
    rows = np.frombuffer(payload, dtype=np.uint8).reshape(-1, head_bytes)
    places = _places(layout, piece)
    if len(rows) != len(places):
        raise ValueError(f"{len(rows)} head vectors for a place of {len(places)}")
    multipliers = _multipliers(-(-head_bytes // _WORD_BYTES))
    total = 0
    step = max(1, _SLAB_BYTES // head_bytes)
    for start in range(0, len(rows), step):
        hashes = _hash_rows(_as_words(rows[start : start + step]), multipliers)
        hashes ^= places[start : start + step]
        total += int(_mix(hashes).sum(dtype=np.uint64))
    return total & (2**64 - 1)


def _places(layout: KvLayout, piece: KvRange) -> _U64:
    """A number per head vector of `piece`, in payload order, that no other place has."""
    layers = np.arange(piece.layers.start, piece.layers.stop, dtype=np.uint64)
    kinds = np.arange(2, dtype=np.uint64)
    tokens = np.arange(piece.tokens.start, piece.tokens.stop, dtype=np.uint64)
    heads = np.arange(layout.num_kv_heads, dtype=np.uint64)
    # 15 bits of layers, 1 of K or V, 32 of tokens, 16 of heads.
    place = (
        layers[:, None, None, None] << np.uint64(49)
        | kinds[:, None, None] << np.uint64(48)
        | tokens[:, None] << np.uint64(16)
        | heads
    )
    # Odd multiplier: still one to one. Spread, so that neighbours differ in every bit.
    spread: _U64 = place.reshape(-1) * np.uint64(_GOLDEN)
    return spread


def _multipliers(num_words: int) -> _U64:
    """Odd 64-bit numbers, one per word of a head vector."""
    return _mix(np.arange(1, num_words + 1, dtype=np.uint64)) | np.uint64(1)


def _as_words(rows: NDArray[np.uint8]) -> _U64:
    """Head vectors as 64-bit words, zero-padded where they do not fill the last."""
    ragged = rows.shape[1] % _WORD_BYTES
    if ragged:
        rows = np.pad(rows, ((0, 0), (0, _WORD_BYTES - ragged)))
    return rows.view("<u8")


def _hash_rows(words: _U64, multipliers: _U64) -> _U64:
    """One number per row. A changed bit always changes it: each word's part is one to one."""
    # Multiplying moves bits only upwards; without the shift, flips of two top bits would cancel.
    mixed = words >> np.uint64(32)
    mixed ^= words
    hashes: _U64 = np.dot(mixed, multipliers)
    return hashes


def _mix(values: _U64) -> _U64:
    """splitmix64's finaliser, in place: one to one, and every bit reaches every bit."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
