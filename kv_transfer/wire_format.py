"""How KV is written on the wire: as it is stored, or smaller and not exact."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.kv_layout import KvLayout, KvRange
from core.model_spec import DTYPE_BYTES
from kv_transfer.jit import kernel


class WireFormat(Protocol):
    """One way to write head vectors. All functions are pure, and run in copy threads."""

    @property
    def name(self) -> str:
        """In `core.kv_layout.WIRE_FORMATS`."""
        ...

    @property
    def is_stored(self) -> bool:
        """The wire has what the store has: nothing to encode or decode."""
        ...

    def head_bytes(self, layout: KvLayout) -> int:
        """Of one head vector on the wire."""
        ...

    def num_bytes(self, layout: KvLayout, piece: KvRange) -> int:
        """Payload of a segment."""
        ...

    def encode(self, stored: memoryview, out: memoryview, layout: KvLayout) -> None:
        """Write head vectors as the store has them into all of `out`, in the same order."""
        ...

    def decode(self, wire: memoryview, layout: KvLayout) -> memoryview:
        """Head vectors as the store has them."""
        ...


def wire_format(name: str, layout: KvLayout) -> WireFormat:
    """By its name in `core.kv_layout.WIRE_FORMATS`. Raises ValueError for others, and for a
    layout whose dtype it cannot write."""
    known: dict[str, WireFormat] = {f.name: f for f in (Stored(), Int8())}
    if name not in known:
        raise ValueError(f"wire format {name!r} is none of {', '.join(known)}")
    if layout.dtype not in DTYPE_BYTES:
        raise ValueError(f"wire format {name!r} of {layout.dtype}")
    return known[name]


@dataclass(frozen=True, slots=True)
class Stored:
    """Exact: the store's own bytes."""

    name: str = "stored"
    is_stored: bool = True

    def head_bytes(self, layout: KvLayout) -> int:
        """As in the store."""
        return layout.head_dim * DTYPE_BYTES[layout.dtype]

    def num_bytes(self, layout: KvLayout, piece: KvRange) -> int:
        """As in the store."""
        return piece.num_bytes(layout)

    def encode(self, stored: memoryview, out: memoryview, layout: KvLayout) -> None:
        """A copy."""
        out[:] = stored

    def decode(self, wire: memoryview, layout: KvLayout) -> memoryview:
        """The same memory."""
        return wire


_SCALE_BYTES = 4
_MAX_CODE = np.float32(127)
_MIN_SCALE = np.float32(2.0**-126)
"""Of the normal numbers the smallest: a scale among the subnormal ones is too coarse itself."""
_NO_SIGN = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_ROUNDING = np.float32(1.5 * 2**23)


@dataclass(frozen=True, slots=True)
class Int8:
    """Each head vector as one float32 scale and an int8 per element: off by half a scale at most,
    which is a 254th of its largest element.

    A head vector with NaN or infinity in it has NaN for a scale, and comes out as NaN throughout:
    damage that prefill computed stays visible.
    """

    name: str = "int8"
    is_stored: bool = False

    def head_bytes(self, layout: KvLayout) -> int:
        """Scale, codes, and zeros up to a multiple of 4."""
        return _row_type(layout.head_dim).itemsize

    def num_bytes(self, layout: KvLayout, piece: KvRange) -> int:
        """Payload of a segment."""
        num_rows = 2 * len(piece.layers) * len(piece.tokens) * layout.num_kv_heads
        return num_rows * self.head_bytes(layout)

    def encode(self, stored: memoryview, out: memoryview, layout: KvLayout) -> None:
        """Write head vectors as the store has them into all of `out`, in the same order."""
        values = _as_float32(stored, layout.dtype)
        num_rows, rest = divmod(len(values), layout.head_dim)
        if rest or out.nbytes != num_rows * self.head_bytes(layout):
            raise ValueError(f"{stored.nbytes} bytes of {layout.dtype} into {out.nbytes} of int8")
        _quantise(values, layout.head_dim, np.frombuffer(out, dtype=np.uint8))

    def decode(self, wire: memoryview, layout: KvLayout) -> memoryview:
        """Head vectors as the store has them."""
        rows = np.frombuffer(wire, dtype=_row_type(layout.head_dim))
        # A peer's scale may be anything; what comes of it is seen in what is decoded.
        with np.errstate(over="ignore", invalid="ignore"):
            values = rows["codes"].astype(np.float32) * rows["scale"][:, None]
            return _as_dtype(values, layout.dtype)


def warm_up() -> None:
    """Compile, or load what was compiled: seconds, that no request should wait for."""
    for dtype in DTYPE_BYTES:
        layout = KvLayout(num_layers=1, num_kv_heads=1, head_dim=4, dtype=dtype, block_size=1)
        piece = KvRange(range(1), range(1))
        wire = Int8()
        out = memoryview(bytearray(wire.num_bytes(layout, piece)))
        wire.encode(memoryview(bytes(piece.num_bytes(layout))), out, layout)
        wire.decode(out, layout)


def _row_type(head_dim: int) -> np.dtype[np.void]:
    """Of one head vector on the wire."""
    num_zeros = -head_dim % _SCALE_BYTES
    return np.dtype([("scale", "<f4"), ("codes", "i1", (head_dim,)), ("zeros", "u1", (num_zeros,))])


def _as_float32(stored: memoryview, dtype: str) -> NDArray[np.float32]:
    """Aligned, which kernels count on, and read-only, lest numba compile them for both."""
    if dtype == "bfloat16":
        # numpy knows no bfloat16: the upper half of a float32.
        halves = np.frombuffer(stored, dtype=np.uint16).astype(np.uint32)
        halves <<= np.uint32(16)
        values = halves.view(np.float32)
    else:
        values = np.frombuffer(stored, dtype=dtype).astype(np.float32, copy=False)
    values = np.require(values, requirements="A").view()
    values.flags.writeable = False
    return values


def _as_dtype(values: NDArray[np.float32], dtype: str) -> memoryview:
    """Their bytes, rounded to nearest, to even where two are as near."""
    if dtype == "bfloat16":
        halves = np.empty(values.size, dtype=np.uint16)
        _round_to_bfloat16(values.reshape(-1), halves)
        return halves.view(np.uint8).data
    return values.astype(dtype, copy=False).reshape(-1).view(np.uint8).data


@kernel
def _quantise(values: NDArray[np.float32], head_dim: int, out: NDArray[np.uint8]) -> None:
    """Rows of int8 into `out`."""
    row_bytes = _SCALE_BYTES + head_dim + -head_dim % _SCALE_BYTES
    bits = values.view(np.uint32)
    for row in range(len(values) // head_dim):
        first, at = row * head_dim, row * row_bytes
        # As an integer: those above infinity are NaN, which a comparison of floats would lose.
        largest = np.uint32(0)
        for i in range(head_dim):
            largest = np.uint32(max(largest, bits[first + i] & _NO_SIGN))
        scale = max(np.float32(np.uint32(largest).view(np.float32) / _MAX_CODE), _MIN_SCALE)
        if largest >= _INFINITY:
            scale = np.float32(np.nan)
        scale_bits = np.float32(scale).view(np.uint32)
        if scale * _MAX_CODE == np.inf:  # rounded up, of the very largest numbers
            scale_bits -= np.uint32(1)
        for i in range(_SCALE_BYTES):
            out[at + i] = np.uint8(scale_bits >> np.uint32(8 * i) & np.uint32(0xFF))
        at += _SCALE_BYTES
        for i in range(head_dim):
            # Above 1.5 × 2²³ floats are whole numbers: the sum is rounded to nearest, and its low
            # bits are the number. NaN's are any; its scale is NaN too.
            code = np.float32(values[first + i] / scale + _ROUNDING)
            out[at + i] = np.uint8(code.view(np.uint32) & np.uint32(0xFF))
        for i in range(head_dim, row_bytes - _SCALE_BYTES):
            out[at + i] = np.uint8(0)


@kernel
def _round_to_bfloat16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """To nearest, to even where two are as near."""
    all_bits = values.view(np.uint32)
    for i in range(len(all_bits)):
        bits = all_bits[i]
        odd = bits >> np.uint32(16) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        # Rounded up, some NaN would become 0.
        is_nan = bits & _NO_SIGN > _INFINITY
        out[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)
