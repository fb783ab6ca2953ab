"""Weights of 8 bits: how they are rounded, and that nothing else about a model changes."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from core.config import EngineConfig
from engine.cpu.int8 import LARGEST, Int8Linear, quantise, rounded
from engine.cpu.layer import FastLayer
from engine.cpu.modules import FastLinear
from engine.cpu.speed_up import speed_up
from engine.self_check import load_checked
from tests.engine.architectures import CONFIGS, SHAPE
from tests.engine.cpu.closeness import assert_linear_close
from tests.engine.tiny import TinyModel

SHAPES = [
    # id                            rows   in  out
    ("one row", 1, 64, 48),
    ("one row, odd sizes", 1, 37, 13),
    ("one output", 1, 5, 1),
    ("two rows", 2, 64, 48),
    ("three rows, odd sizes", 3, 37, 13),
    ("as many as our kernels take", 16, 33, 10),
    ("as few as are multiplied as floats", 17, 33, 10),
    ("a prompt", 40, 64, 48),
]
NUM_ROWS = [1, 2, 5, 20]
FUSED = {"llama", "mistral", "qwen2"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def _as_floats(weight: torch.Tensor) -> torch.Tensor:
    values, scales = rounded(weight)
    return values.float() * scales[:, None]


def _check_linear(num_rows: int, size: int, num_outputs: int, bias: bool, room: int = 4096) -> None:
    linear = nn.Linear(size, num_outputs, bias=bias)
    x = torch.randn(1, num_rows, size)
    with torch.inference_mode():
        got = Int8Linear(FastLinear(linear), torch.empty(room))(x)
        assert_linear_close(got, x, _as_floats(linear.weight), linear.bias)


# --- rounding ---------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 40), st.floats(1e-6, 1e6))
def test_a_weight_moves_by_half_a_step_at_most(num_rows: int, size: int, spread: float) -> None:
    weight = torch.randn(num_rows, size) * spread
    values, scales = rounded(weight)
    moved = (_as_floats(weight) - weight).abs() / scales[:, None]
    assert float(moved.max()) <= 0.5 + 1e-4
    assert (values.abs().amax(dim=1) == LARGEST).all()


def test_rounding_is_symmetric() -> None:
    weight = torch.randn(4, 33)
    values, scales = rounded(weight)
    negative, same = rounded(-weight)
    assert torch.equal(negative, -values)
    assert torch.equal(same, scales)


def test_a_row_of_zeros_stays_one() -> None:
    assert torch.equal(_as_floats(torch.zeros(2, 5)), torch.zeros(2, 5))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_rows", [1, 2, 20])
def test_what_is_no_number_stays_visible(wrong: float, num_rows: int) -> None:
    linear = nn.Linear(8, 5).requires_grad_(False)
    linear.weight[3, 2] = wrong
    with torch.inference_mode():
        out = Int8Linear(FastLinear(linear), torch.empty(64))(torch.randn(num_rows, 8))
    assert out.isfinite().all(dim=0).tolist() == [True, True, True, False, True]


# --- products ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("num_rows", "size", "num_outputs"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES]
)
def test_linear(num_rows: int, size: int, num_outputs: int, bias: bool) -> None:
    _check_linear(num_rows, size, num_outputs, bias)


@given(
    st.integers(1, 20), st.integers(1, 70), st.integers(1, 30), st.booleans(), st.integers(70, 300)
)
@settings(deadline=None)
def test_linear_of_any_shape_and_scratch(
    num_rows: int, size: int, num_outputs: int, bias: bool, room: int
) -> None:
    _check_linear(num_rows, size, num_outputs, bias, room)


def test_a_linear_layer_reads_rows_that_do_not_lie_together() -> None:
    linear = nn.Linear(8, 5)
    x = torch.randn(8, 3).T
    int8 = Int8Linear(FastLinear(linear), torch.empty(64))
    with torch.inference_mode():
        want = functional.linear(x, _as_floats(linear.weight), linear.bias)
        _close(int8(x), want)
        _close(int8(x[:1]), want[:1])


# --- models -----------------------------------------------------------------------------------


def _model(config: Any) -> Any:  # noqa: ANN401  a model of transformers
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # type: ignore[no-untyped-call]
    return model.eval().requires_grad_(False)


def _quantised(config: Any) -> Any:  # noqa: ANN401
    model = _model(config)
    speed_up(model)
    quantise(model)
    return model


def _with_rounded_floats(config: Any) -> Any:  # noqa: ANN401
    """The oracle: transformers' own model over the weights that rounding leaves."""
    model = _model(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # A parameter of its own: an embedding tied to it is not rounded.
            module.weight = nn.Parameter(_as_floats(module.weight), requires_grad=False)
    return model


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_weights_of_linear_layers_change(name: str, num_rows: int) -> None:
    want_of, got_of = _with_rounded_floats(CONFIGS[name]), _quantised(CONFIGS[name])
    ids = torch.arange(num_rows)[None] * 13 % 300
    with torch.inference_mode():
        want, got = (m(input_ids=ids, use_cache=False).logits for m in (want_of, got_of))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_replaced(name: str) -> None:
    kinds = [type(module) for module in _quantised(CONFIGS[name]).modules()]
    assert nn.Linear not in kinds
    assert FastLinear not in kinds
    assert Int8Linear in kinds
    assert (FastLayer in kinds) == (name in FUSED)


def test_a_fused_layer_holds_no_floats_of_its_parts() -> None:
    layer = _quantised(CONFIGS["llama"]).model.layers[0]
    assert layer._outer[3] is layer.mlp.down_proj.rows
    assert layer._qkv[0] is layer.self_attn.q_proj.rows


def test_a_tied_embedding_keeps_its_floats() -> None:
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    plain, model = _model(config), _quantised(config)
    assert isinstance(model.lm_head, Int8Linear)
    assert torch.equal(model.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_a_loaded_model_says_so_and_answers(tiny: TinyModel) -> None:
    exact = load_checked(tiny.directory, EngineConfig())
    model = load_checked(tiny.directory, EngineConfig(weights="int8"))
    assert (exact.spec.weights, model.spec.weights) == ("stored", "int8")
    assert any(isinstance(module, Int8Linear) for module in model.module.modules())
    assert not any(isinstance(module, Int8Linear) for module in exact.module.modules())
