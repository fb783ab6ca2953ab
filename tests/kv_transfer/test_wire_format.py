"""The wire formats: what is exact, how far off the other is, and what each weighs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.kv_layout import WIRE_FORMATS, KvLayout, KvRange
from core.model_spec import DTYPE_BYTES
from kv_transfer.wire_format import (
    Int8,
    _quantise,
    _round_to_bfloat16,
    warm_up,
    wire_format,
)

PIECE = KvRange(range(1, 3), range(4, 9))
NUM_ROWS = 2 * 2 * 5 * 3
HALF_STEPS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""What rounding to the dtype adds, relative to the value."""
LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


def layout_of(dtype: str, head_dim: int) -> KvLayout:
    return KvLayout(num_layers=4, num_kv_heads=3, head_dim=head_dim, dtype=dtype, block_size=4)


def stored_as(values: NDArray[Any], dtype: str) -> memoryview:
    """As a store of `dtype` has them; to bfloat16 by cutting off, which is rounding too."""
    if dtype != "bfloat16":
        return values.astype(dtype).reshape(-1).view(np.uint8).data
    bits = values.astype(np.float32).reshape(-1).view(np.uint32) >> 16
    return bits.astype(np.uint16).view(np.uint8).data


def values_of(stored: memoryview, dtype: str, head_dim: int) -> NDArray[np.float64]:
    if dtype != "bfloat16":
        return np.frombuffer(stored, dtype).astype(np.float64).reshape(-1, head_dim)
    bits = np.frombuffer(stored, np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64).reshape(-1, head_dim)


def encoded(stored: memoryview, layout: KvLayout) -> memoryview:
    wire = wire_format("int8", layout)
    num_rows = stored.nbytes // (layout.head_dim * DTYPE_BYTES[layout.dtype])
    # Dirty: encode has to write all of it.
    out = memoryview(bytearray(b"\xaa" * (num_rows * wire.head_bytes(layout))))
    wire.encode(stored, out, layout)
    return out


def scales_of(wire: memoryview, layout: KvLayout) -> NDArray[np.float64]:
    row_bytes = wire_format("int8", layout).head_bytes(layout)
    rows = np.frombuffer(wire, np.uint8).reshape(-1, row_bytes)
    return rows[:, :4].copy().view("<f4").astype(np.float64)


SIZES = [
    # format, dtype, head_dim, bytes of a head vector
    ("stored", "float32", 64, 256),
    ("stored", "bfloat16", 64, 128),
    ("int8", "float32", 64, 68),
    ("int8", "bfloat16", 64, 68),
    ("int8", "float16", 128, 132),
    ("int8", "float32", 3, 8),
    ("int8", "float32", 1, 8),
]


@pytest.mark.parametrize(("name", "dtype", "head_dim", "want"), SIZES)
def test_sizes(name: str, dtype: str, head_dim: int, want: int) -> None:
    layout = layout_of(dtype, head_dim)
    wire = wire_format(name, layout)
    assert wire.head_bytes(layout) == want
    assert wire.num_bytes(layout, PIECE) == NUM_ROWS * want


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("name", WIRE_FORMATS)
def test_every_format_writes_every_dtype(name: str, dtype: str) -> None:
    layout = layout_of(dtype, 8)
    wire = wire_format(name, layout)
    assert wire.name == name
    assert wire.is_stored == (name == "stored")
    stored = memoryview(bytes(PIECE.num_bytes(layout)))
    out = memoryview(bytearray(b"\xaa" * wire.num_bytes(layout, PIECE)))
    wire.encode(stored, out, layout)
    assert wire.decode(out.toreadonly(), layout) == stored


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [("int4", "float32", "'int4' is none of"), ("int8", "float8", "'int8' of float8")],
)
def test_what_is_not_known_is_refused(name: str, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wire_format(name, layout_of(dtype, 8))


@pytest.mark.parametrize(("num_stored", "num_wire"), [(31, 12), (32, 13), (64, 12), (32, 24)])
def test_sizes_that_do_not_fit_are_refused(num_stored: int, num_wire: int) -> None:
    layout = layout_of("float32", 8)
    out = memoryview(bytearray(num_wire))
    with pytest.raises(ValueError, match=r"bytes|buffer size"):
        Int8().encode(memoryview(bytes(num_stored)), out, layout)
    if num_wire % 12:
        with pytest.raises(ValueError, match="buffer size"):
            Int8().decode(out, layout)


def test_stored_is_the_same_memory() -> None:
    layout = layout_of("float16", 8)
    stored = memoryview(np.random.default_rng(0).bytes(PIECE.num_bytes(layout)))
    wire = wire_format("stored", layout)
    out = memoryview(bytearray(stored.nbytes))
    wire.encode(stored, out, layout)
    assert wire.decode(out, layout) is out
    assert out == stored


SPREADS = [
    # what the values are, times these
    ("as KV is", 1.0),
    ("large", 1e4),
    ("small", 1e-4),
    ("subnormal in float16", 1e-7),
    ("close to nothing", 1e-38),
    ("subnormal", 1e-42),
]


@pytest.mark.parametrize("spread", [s[1] for s in SPREADS], ids=[s[0] for s in SPREADS])
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("head_dim", [1, 3, 64, 80])
def test_int8_is_off_by_half_a_scale_at_most(head_dim: int, dtype: str, spread: float) -> None:
    layout = layout_of(dtype, head_dim)
    normal = np.random.default_rng(head_dim).normal(size=(500, head_dim))
    stored = stored_as((normal * spread).clip(-LARGEST[dtype], LARGEST[dtype]), dtype)
    wire = encoded(stored, layout)
    got = values_of(Int8().decode(wire, layout), dtype, head_dim)
    values, scales = values_of(stored, dtype, head_dim), scales_of(wire, layout)
    # A scale has float32's precision, and what comes out the dtype's, at its bottom absolute.
    smallest = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}[dtype]
    rounding = np.abs(values).max(axis=1, keepdims=True) * (HALF_STEPS[dtype] + 2.0**-22)
    assert (np.abs(got - values) <= scales / 2 + rounding + smallest / 2).all()
    assert (scales <= np.maximum(np.abs(values).max(axis=1, keepdims=True) / 126.99, 2**-126)).all()


def test_the_error_of_kv_like_values_is_a_hundredth() -> None:
    """The figure that docs state: of normal values in heads of 64."""
    layout = layout_of("float32", 64)
    stored = stored_as(np.random.default_rng(0).normal(size=(2000, 64)), "float32")
    values = values_of(stored, "float32", 64)
    got = values_of(Int8().decode(encoded(stored, layout), layout), "float32", 64)
    relative = np.linalg.norm(got - values) / np.linalg.norm(values)
    print(f"int8: relative error {relative:.5f}, bytes 68 of 256")
    assert relative < 0.01


BROKEN = [np.nan, -np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_row_with_nan_or_infinity_is_nan_and_no_other(dtype: str, broken: float) -> None:
    layout = layout_of(dtype, 8)
    values = np.random.default_rng(0).normal(size=(5, 8))
    values[2, 3] = broken
    got = values_of(Int8().decode(encoded(stored_as(values, dtype), layout), layout), dtype, 8)
    assert np.isnan(got[2]).all()
    assert np.isfinite(got[[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_stays_finite(dtype: str, sign: int) -> None:
    layout = layout_of(dtype, 4)
    values = sign * np.array([[1.0, 0.5, -1.0, 0.0]]) * LARGEST[dtype]
    got = values_of(Int8().decode(encoded(stored_as(values, dtype), layout), layout), dtype, 4)
    assert np.isfinite(got).all()
    assert got[0] == pytest.approx(values[0], rel=0.02)


def test_no_largest_number_of_float32_overflows() -> None:
    """127 times a rounded 127th could be above what it was made of."""
    layout = layout_of("float32", 1)
    top = np.uint32(0x7F7FFFFF) - np.arange(100_000, dtype=np.uint32)
    got = Int8().decode(encoded(top.view(np.uint8).data, layout), layout)
    assert np.isfinite(np.frombuffer(got, np.float32)).all()


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("head_dim", [7, 64])
def test_alignment_does_not_matter(dtype: str, head_dim: int) -> None:
    layout = layout_of(dtype, head_dim)
    stored = stored_as(np.random.default_rng(0).normal(size=(6, head_dim)), dtype)
    wire = encoded(stored, layout)
    decoded = bytes(Int8().decode(wire, layout))
    for offset in range(1, 5):
        shifted = memoryview(b"x" * offset + bytes(stored))[offset:]
        assert encoded(shifted, layout) == wire
        out = memoryview(bytearray(offset + wire.nbytes))[offset:]
        Int8().encode(stored, out, layout)
        assert out == wire
        assert Int8().decode(out.toreadonly(), layout) == decoded


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=64, max_size=64), dtype=st.sampled_from(sorted(DTYPE_BYTES)))
def test_any_bytes_go_through_without_an_error(data: bytes, dtype: str) -> None:
    """Whatever prefill computed, and whatever an honest peer was made to send."""
    layout = layout_of(dtype, 8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(values_of(memoryview(data), dtype, 8)).all(axis=1)
    got = Int8().decode(encoded(memoryview(data), layout), layout)
    assert (np.isfinite(values_of(got, dtype, 8)).all(axis=1) == finite).all()
    assert Int8().decode(memoryview(data[:60]), layout).nbytes == 5 * 8 * DTYPE_BYTES[dtype]


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_bfloat16_is_rounded_to_nearest_even(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float32)
    out = np.empty(len(values), dtype=np.uint16)
    _round_to_bfloat16(given_values, out)
    for value, bits in zip(given_values, out, strict=True):
        assert int(bits) == plain_bfloat16(float(value))


def plain_bfloat16(value: float) -> int:
    """By its definition: the neighbour that is nearer, of two as near the even one."""
    if np.isnan(value):
        return 0x7FC0
    bits = int(np.float32(value).view(np.uint32))
    low, rest = bits >> 16, bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and low % 2 == 1)
    return low + up


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001])
def test_every_nan_stays_nan_in_bfloat16(bits: int) -> None:
    layout = layout_of("bfloat16", 4)
    wire = np.array([bits, 0x04030201], dtype="<u4").view(np.uint8).data
    assert np.isnan(values_of(Int8().decode(wire, layout), "bfloat16", 4)).all()


def test_the_bytes_are_part_of_the_contract() -> None:
    """Peers of one protocol version must agree: a change here raises the version."""
    layout = layout_of("float32", 6)
    stored = stored_as(np.array([[127.0, -127.0, 1.0, -1.5, 2.5, 0.4]]), "float32")
    assert bytes(encoded(stored, layout)).hex() == "0000803f" + "7f8101fe0200" + "0000"


def test_warm_up_leaves_nothing_to_compile() -> None:
    warm_up()
    for dtype in DTYPE_BYTES:
        layout = layout_of(dtype, 64)
        Int8().decode(encoded(stored_as(np.ones((4, 64)), dtype), layout), layout)
    kernels: tuple[Any, ...] = (_quantise, _round_to_bfloat16)
    assert [len(kernel.signatures) for kernel in kernels] == [1, 1]
