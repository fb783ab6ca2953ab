"""How KV is written on the wire: as it is stored, or smaller and not exact."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.kv_layout import KvLayout, KvRange
from core.model_spec import DTYPE_BYTES


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
_MAX_CODE = 127
_MIN_SCALE = np.float32(2.0**-126)
"""Of the normal numbers the smallest: a scale among the subnormal ones is too coarse itself."""


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
        values = _as_float32(stored, layout.dtype).reshape(-1, layout.head_dim)
        rows = np.frombuffer(out, dtype=_row_type(layout.head_dim))
        largest = np.abs(values).max(axis=1)
        scales = np.maximum(largest / np.float32(_MAX_CODE), _MIN_SCALE)
        scales[~np.isfinite(scales)] = np.nan
        with np.errstate(invalid="ignore"):
            codes = np.rint(values / scales[:, None])
            codes[np.isnan(scales)] = 0
            rows["codes"] = codes.astype(np.int8)
        rows["scale"] = scales
        rows["zeros"] = 0

    def decode(self, wire: memoryview, layout: KvLayout) -> memoryview:
        """Head vectors as the store has them."""
        rows = np.frombuffer(wire, dtype=_row_type(layout.head_dim))
        values = rows["codes"].astype(np.float32) * rows["scale"][:, None]
        return _as_dtype(values, layout.dtype)


def _row_type(head_dim: int) -> np.dtype[np.void]:
    """Of one head vector on the wire."""
    num_zeros = -head_dim % _SCALE_BYTES
    return np.dtype([("scale", "<f4"), ("codes", "i1", (head_dim,)), ("zeros", "u1", (num_zeros,))])


def _as_float32(stored: memoryview, dtype: str) -> NDArray[np.float32]:
    if dtype != "bfloat16":
        return np.frombuffer(stored, dtype=dtype).astype(np.float32, copy=False)
    # numpy knows no bfloat16: the upper half of a float32.
    return (np.frombuffer(stored, dtype=np.uint16).astype(np.uint32) << np.uint32(16)).view(
        np.float32
    )


def _as_dtype(values: NDArray[np.float32], dtype: str) -> memoryview:
    """Their bytes, rounded to nearest, to even where two are as near."""
    if dtype != "bfloat16":
        return values.astype(dtype, copy=False).reshape(-1).view(np.uint8).data
    bits = values.reshape(-1).view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    rounded[np.isnan(values.reshape(-1))] = 0x7FC0
    return rounded.astype(np.uint16).view(np.uint8).data
