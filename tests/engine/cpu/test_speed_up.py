"""Every architecture computes the same after `speed_up`, and owns nothing twice."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.cpu.layer import FastLayer
from engine.cpu.modules import FastLinear
from engine.cpu.speed_up import speed_up
from tests.engine.architectures import CONFIGS, SHAPE

NUM_ROWS = [1, 2, 5, 20]
FUSED = {"llama", "mistral", "qwen2"}
NO_LINEAR_BUT_HEAD = {"gpt2"}


def _model(config: Any) -> Any:  # noqa: ANN401  a model of transformers
    torch.manual_seed(5)
    # Its own copy: a model writes its attention's name into the config.
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # type: ignore[no-untyped-call]
    return model.eval().requires_grad_(False)


def _num_bytes(module: nn.Module) -> int:
    """Of storages, each once: a weight shared or viewed counts as one."""
    tensors = [*module.parameters(), *module.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits(name: str, num_rows: int) -> None:
    torch.set_num_threads(1)
    plain, fast = _model(CONFIGS[name]), _model(CONFIGS[name])
    speed_up(fast)
    ids = torch.arange(num_rows)[None] * 13 % 300
    with torch.inference_mode():
        want, got = (m(input_ids=ids, use_cache=False).logits for m in (plain, fast))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_replaced(name: str) -> None:
    model = _model(CONFIGS[name])
    speed_up(model)
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds
    assert FastLinear in kinds
    assert (FastLayer in kinds) == (name in FUSED)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_held_twice(name: str) -> None:
    model = _model(CONFIGS[name])
    num_bytes = _num_bytes(model)
    speed_up(model)
    assert _num_bytes(model) == num_bytes


def test_tied_embeddings_stay_one_matrix() -> None:
    model = _model(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    speed_up(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.rows.ctypes.data == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    model = _model(CONFIGS["llama"]).to(dtype)
    speed_up(model)
    assert not any(isinstance(module, FastLinear) for module in model.modules())


class _Wrapper(nn.Module):
    """As tensor parallelism puts one around a projection."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is inside, and more than a FastLinear alone."""
        out: torch.Tensor = self.inner(x) * 1.0
        return out


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_a_wrapped_projection_is_called_through_its_wrapper(num_rows: int) -> None:
    torch.set_num_threads(1)
    plain, fast = _model(CONFIGS["llama"]), _model(CONFIGS["llama"])
    for layer in fast.model.layers:
        layer.self_attn.o_proj = _Wrapper(layer.self_attn.o_proj)
        layer.mlp.down_proj = _Wrapper(layer.mlp.down_proj)
    speed_up(fast)
    assert isinstance(fast.model.layers[0].mlp.down_proj.inner, FastLinear)
    ids = torch.arange(num_rows)[None]
    with torch.inference_mode():
        want, got = (m(input_ids=ids, use_cache=False).logits for m in (plain, fast))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
