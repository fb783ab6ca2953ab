"""A checksum of segments whose sum over a handoff no way of cutting it changes."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.kv_layout import KvRange
from kv_transfer.jit import kernel, load_word

_WORD_BYTES = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_Span: TypeAlias = tuple[int, int]
"""First, and one after the last."""


def kv_digest(payload: memoryview, *, head_bytes: int, num_heads: int, piece: KvRange) -> int:
    """Sum modulo 2⁶⁴ of one hash per (layer, K or V, token, head), each keyed by its place.

    A sum, so that any cut and order of the same KV gives the same total; keyed, so that KV in a
    wrong place does not. It guards against our mistakes and accidents, not against forgers.
    `payload` is head vectors as they are on the wire, each of `head_bytes`; raises ValueError
    when it is not as many as `piece` has.
    """
    num_rows = 2 * len(piece.layers) * len(piece.tokens) * num_heads
    if payload.nbytes != num_rows * head_bytes:
        raise ValueError(
            f"{payload.nbytes} bytes for a place of {num_rows} head vectors of {head_bytes} bytes"
        )
    # Always read-only: for writable memory numba would compile it once more.
    data = np.frombuffer(payload.toreadonly(), dtype=np.uint8)
    if head_bytes < _WORD_BYTES:
        data, head_bytes = _padded(data, head_bytes), _WORD_BYTES
    layers = piece.layers.start, piece.layers.stop
    tokens = piece.tokens.start, piece.tokens.stop
    return int(_digest(data, head_bytes, num_heads, layers, tokens))


def warm_up() -> None:
    """Compile, or load what was compiled: seconds, that no request should wait for."""
    kv_digest(memoryview(bytes(32)), head_bytes=16, num_heads=1, piece=KvRange(range(1), range(1)))


def _padded(data: NDArray[np.uint8], head_bytes: int) -> NDArray[np.uint8]:
    """Head vectors that are shorter than a word as words; no model has them."""
    rows = data.reshape(-1, head_bytes)
    words = np.pad(rows, ((0, 0), (0, _WORD_BYTES - head_bytes))).reshape(-1)
    words.flags.writeable = False
    return words


# A 15-bit layer, a bit of K or V, a 32-bit token and a 16-bit head name a place; one to one, as is
# a product with an odd number, which spreads neighbours.


@kernel
def _digest(
    data: NDArray[np.uint8], head_bytes: int, num_heads: int, layers: _Span, tokens: _Span
) -> np.uint64:
    """Of head vectors in the order [layer][K, V][token][head]."""
    total = np.uint64(0)
    at = 0
    for layer in range(layers[0], layers[1]):
        for kind in range(2):
            for token in range(tokens[0], tokens[1]):
                for head in range(num_heads):
                    place = np.uint64(layer << 49 | kind << 48 | token << 16 | head)
                    hashed = _hash_row(data, at, head_bytes)
                    total += _mix(hashed ^ place * _GOLDEN)
                    at += head_bytes
    return total


@kernel
def _hash_row(data: NDArray[np.uint8], start: int, num_bytes: int) -> np.uint64:
    """Sum of one hash per word, each keyed by its place in the row, and of the rest as one more
    word, zero where nothing is left. At least 8 bytes.

    A changed bit always changes it: each word's part is one to one. Several changed words cancel
    as seldom as chance has it, whatever the pattern: of multiplying alone, which moves bits only
    upwards, a row with all its signs turned would have the same sum.
    """
    total = np.uint64(0)
    key = _GOLDEN
    for at in range(start, start + num_bytes - _WORD_BYTES + 1, _WORD_BYTES):
        total += _mix(load_word(data, at) ^ key)
        key += _GOLDEN
    # The row's last word without what was counted already. Always, and in two shifts, one for
    # where all was: with a branch in it numba's loops are not vectorised, and 3 times as slow.
    last = load_word(data, start + num_bytes - _WORD_BYTES) >> np.uint64(1)
    last >>= np.uint64(8 * _WORD_BYTES - 1 - 8 * (num_bytes % _WORD_BYTES))
    return total + _mix(last ^ key)


@kernel
def _mix(value: np.uint64) -> np.uint64:
    """splitmix64's finaliser: one to one, and every bit reaches every bit."""
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value
