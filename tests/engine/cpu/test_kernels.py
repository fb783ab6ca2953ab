"""The kernels against torch, over a table of shapes and any that hypothesis finds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from engine.cpu.jit import Floats, exp, kernel
from engine.cpu.modules import FastLinear, FastRmsNorm
from engine.cpu.row_kernels import gate_silu, rotate
from tests.engine.cpu.closeness import assert_linear_close

SHAPES = [
    # id                            rows   in  out
    ("one row", 1, 64, 48),
    ("one row, odd sizes", 1, 37, 13),
    ("fewer outputs than a tile", 1, 5, 3),
    ("two rows", 2, 64, 48),
    ("three rows, odd sizes", 3, 37, 13),
    ("as many as our kernels take", 8, 33, 10),
    ("as few as oneDNN takes", 9, 33, 10),
    ("a prompt", 40, 64, 48),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def _check_linear(num_rows: int, size: int, num_outputs: int, bias: bool) -> None:
    linear = nn.Linear(size, num_outputs, bias=bias)
    x = torch.randn(1, num_rows, size)
    with torch.inference_mode():
        assert_linear_close(FastLinear(linear)(x), x, linear.weight, linear.bias)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("num_rows", "size", "num_outputs"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES]
)
def test_linear(num_rows: int, size: int, num_outputs: int, bias: bool) -> None:
    _check_linear(num_rows, size, num_outputs, bias)


@given(st.integers(1, 11), st.integers(1, 70), st.integers(1, 30), st.booleans())
@settings(deadline=None)
def test_linear_of_any_shape(num_rows: int, size: int, num_outputs: int, bias: bool) -> None:
    _check_linear(num_rows, size, num_outputs, bias)


def test_a_linear_layer_reads_rows_that_do_not_lie_together() -> None:
    linear = nn.Linear(8, 5)
    x = torch.randn(8, 3).T
    with torch.inference_mode():
        assert_linear_close(FastLinear(linear)(x), x, linear.weight, linear.bias)
        assert_linear_close(FastLinear(linear)(x[:1]), x[:1], linear.weight, linear.bias)


def test_a_linear_layer_shares_its_weight() -> None:
    linear = nn.Linear(8, 5)
    fast = FastLinear(linear)
    assert fast.weight is linear.weight
    assert fast.rows.ctypes.data == linear.weight.data_ptr()


def test_nan_stays_visible() -> None:
    linear = nn.Linear(8, 5)
    x = torch.zeros(1, 8)
    x[0, 3] = float("nan")
    with torch.inference_mode():
        assert FastLinear(linear)(x).isnan().all()


@kernel
def _exps(x: Floats, out: Floats) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


def test_exp_to_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    got = np.empty_like(x)
    _exps(x, got)
    want = np.exp(x.astype(np.float64))
    assert np.abs(got / want - 1).max() < 2 * np.finfo(np.float32).eps


def test_exp_at_the_ends() -> None:
    x = np.array([-np.inf, -1000, 0, 1000, np.inf, np.nan], np.float32)
    got = np.empty_like(x)
    _exps(x, got)
    np.testing.assert_array_equal(got, np.array([0, 0, 1, np.inf, np.inf, np.nan], np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 7, 33), (2, 3, 5, 16)], ids=str)
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    _close(FastRmsNorm(weight, 1e-5)(x), functional.rms_norm(x, shape[-1:], weight, 1e-5))


@pytest.mark.parametrize("dim", [2, 10, 64, 256])
def test_rotate(dim: int) -> None:
    x, cos, sin = torch.randn(3, 4, dim), torch.randn(3, dim), torch.randn(3, dim)
    half = torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), dim=-1)
    want = x * cos[:, None] + half * sin[:, None]
    rotate(x.numpy(), cos.numpy(), sin.numpy())
    _close(x, want)


def test_gate_silu() -> None:
    gate, up = torch.randn(1001) * 20, torch.randn(1001)
    want = functional.silu(gate) * up
    gate_silu(gate.numpy(), up.numpy())
    _close(gate, want)
