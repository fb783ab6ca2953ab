"""The start-up check: it passes what is right, and names an architecture that is not."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DiffLlamaConfig,
    GPTNeoXConfig,
    GraniteConfig,
    MistralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from core.errors import ModelError
from engine import attention
from engine.attention import StepAttention
from engine.model import LoadedModel, load_model
from engine.self_check import LIMITS, check_against_eager
from tests.engine.architectures import CONFIGS, SHAPE
from tests.engine.tiny import TinyModel

load_plain = partial(load_model, fast=False)

ALL_HEADS: dict[str, Any] = {
    name: value for name, value in SHAPE.items() if name not in ("head_dim", "num_key_value_heads")
}
OTHERS: dict[str, PretrainedConfig] = {
    "cohere": CohereConfig(**SHAPE),
    "gpt_neox": GPTNeoXConfig(**ALL_HEADS),
    "granite": GraniteConfig(**SHAPE),
    "olmo2": Olmo2Config(**SHAPE),
    "olmoe": OlmoeConfig(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "smollm3": SmolLM3Config(**SHAPE),
    "starcoder2": Starcoder2Config(**SHAPE),
}
"""Architectures that nobody has looked at: the check is what lets them in."""


def saved(config: PretrainedConfig, directory: Path) -> Path:
    torch.manual_seed(3)
    module: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    module.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_passes(name: str, tmp_path: Path) -> None:
    directory = saved((CONFIGS | OTHERS)[name], tmp_path)
    for dtype, limit in LIMITS.items():
        model = load_plain(directory, dtype=dtype)
        assert 0 < check_against_eager(model, num_threads=1) < limit
    # What the check switched is switched back.
    config: Any = model.module.config
    assert config._attn_implementation == attention.NAME


def test_leaves_no_trace(tiny: TinyModel) -> None:
    runner = tiny.runner()
    runner.warm_up()
    before = runner.kv_cache.data.clone()
    check_against_eager(load_plain(tiny.directory), num_threads=1)
    assert torch.equal(runner.kv_cache.data, before)
    assert not load_plain(tiny.directory).module._forward_hooks


def test_an_architecture_that_differs_is_named(tmp_path: Path) -> None:
    """DiffLlama subtracts two attentions: it takes a backend, and then ignores it."""
    model = load_plain(saved(DiffLlamaConfig(**SHAPE), tmp_path))
    with pytest.raises(ModelError, match=r"DiffLlamaForCausalLM is not supported: .* 0\.\d+ of"):
        check_against_eager(model, num_threads=1)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("window", [10, 60])
def test_a_window_that_is_not_kept_is_noticed(
    window: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_plain(saved(MistralConfig(**SHAPE, sliding_window=window), tmp_path), dtype=dtype)
    attend = StepAttention.attend
    monkeypatch.setattr(
        StepAttention, "attend", lambda self, i, qkv, scale, _: attend(self, i, qkv, scale, None)
    )
    with pytest.raises(ModelError, match="MistralForCausalLM is not supported"):
        check_against_eager(model, num_threads=1)


def with_broken_weights(model: LoadedModel) -> LoadedModel:
    model.module.get_parameter("model.norm.weight")[0] = float("nan")
    return model


def test_weights_that_are_no_numbers_are_noticed(tiny: TinyModel) -> None:
    model = with_broken_weights(load_plain(tiny.directory))
    with pytest.raises(ModelError, match="differ from its own by nan"):
        check_against_eager(model, num_threads=1)


def test_an_attention_that_fails_is_one_line(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("size 24 of tensor a must match\nsize 16 of tensor b")

    monkeypatch.setattr(StepAttention, "attend", fail)
    with pytest.raises(ModelError, match=r"does not run with paged attention: size 24 .* b$"):
        check_against_eager(load_plain(tiny.directory), num_threads=1)


def test_a_short_context_is_not_exceeded(tmp_path: Path) -> None:
    model = load_plain(saved(MistralConfig(**(SHAPE | {"max_position_embeddings": 16})), tmp_path))
    check_against_eager(model, num_threads=1)
