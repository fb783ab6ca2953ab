"""One-pass kernels against the operations of torch they stand for, and whole models with them."""

from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from engine.cuda.elementwise import rms_norm, silu_times
from engine.cuda.speed_up import OnePassGate, OnePassNorm, speed_up
from tests.engine.architectures import SHAPE
from tests.engine.cuda.device import DEVICE

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative: one rounding of the dtype."""
DTYPES = list(LIMITS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 64), (1, 2, 5, 24), (1, 1, 1100)])
@pytest.mark.parametrize("round_first", [True, False])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, round_first: bool) -> None:
    x = (3 * torch.randn(shape)).to(DEVICE, dtype)
    weight = torch.randn(shape[-1]).to(DEVICE, dtype)
    normed = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    if round_first:
        normed = normed.to(dtype).double()
    want = (normed * weight.double()).to(dtype)
    got = rms_norm(x, weight, 1e-6, round_first=round_first)
    torch.testing.assert_close(got, want, rtol=2 * LIMITS[dtype], atol=LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [5, 1024, 1500])
def test_silu_times(size: int, dtype: torch.dtype) -> None:
    # Two halves of one product, as joined layers give them.
    gate, up = torch.split((4 * torch.randn(1, 3, 2 * size)).to(DEVICE, dtype), size, dim=-1)
    want = silu(gate) * up
    got = silu_times(gate, up)
    torch.testing.assert_close(got, want, rtol=2 * LIMITS[dtype], atol=LIMITS[dtype])


MODELS: list[tuple[str, PretrainedConfig, int]] = [
    # id       config                       gates replaced
    ("Llama", LlamaConfig(**SHAPE), 2),
    ("Qwen3", Qwen3Config(**SHAPE), 2),
    ("Gemma 3", Gemma3TextConfig(**SHAPE), 0),
]


@pytest.mark.parametrize(
    ("config", "num_gates"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS]
)
def test_models_compute_the_same(config: PretrainedConfig, num_gates: int) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = model.to(DEVICE).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.randn_like(parameter))
    ids = torch.arange(10, 20, device=DEVICE)[None]
    with torch.inference_mode():
        want = model(input_ids=ids, use_cache=False).logits
        speed_up(model)
        got = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    gates = [part for part in model.modules() if isinstance(part, OnePassGate)]
    norms = [name for name, part in model.named_modules() if isinstance(part, OnePassNorm)]
    assert len(gates) == num_gates
    assert len(norms) == sum("norm" in name for name, _ in model.named_modules())
