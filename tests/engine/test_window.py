"""Models whose every layer slides: told from the config, and free to forget the rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from engine.model import LoadedModel, load_model
from engine.runner import one_rank
from tests.engine.architectures import MOE, SHAPE, WINDOW_TOKENS, Architecture, Architectures
from tests.engine.tiny import Answer, random_prompt, run_step

SLIDING: dict[str, Any] = SHAPE | {"use_sliding_window": True, "sliding_window": 10}
MIXED = ["sliding_attention", "full_attention"]
TWO_SLIDING = ["sliding_attention", "sliding_attention"]

WINDOWS: list[tuple[str, PretrainedConfig, int | None]] = [
    # id                             config                                            want
    ("Llama", LlamaConfig(**SHAPE), None),
    ("Mistral", MistralConfig(**SHAPE, sliding_window=10), 10),
    ("Mistral without a window", MistralConfig(**SHAPE, sliding_window=None), None),
    ("Mixtral", MixtralConfig(**SHAPE, sliding_window=10, num_local_experts=2), 10),
    ("StarCoder2", Starcoder2Config(**SHAPE, sliding_window=10), 10),
    ("Qwen2, window not used", Qwen2Config(**SHAPE, sliding_window=10), None),
    ("Qwen2, some layers", Qwen2Config(**SLIDING, max_window_layers=1), None),
    ("Qwen2, all layers", Qwen2Config(**SLIDING, max_window_layers=0), 10),
    ("Qwen2, listed", Qwen2Config(**SLIDING, layer_types=TWO_SLIDING), 10),
    ("Qwen2-MoE, window not used", Qwen2MoeConfig(**SHAPE, **MOE, sliding_window=10), None),
    ("Qwen3, all layers", Qwen3Config(**SLIDING, max_window_layers=0), 10),
    ("Qwen3-MoE", Qwen3MoeConfig(**SLIDING, **MOE), 10),
    ("Gemma 3", Gemma3TextConfig(**SHAPE, sliding_window=10, layer_types=MIXED), None),
    ("Gemma 3, local", Gemma3TextConfig(**SHAPE, sliding_window=10, layer_types=TWO_SLIDING), 10),
]


def load(config: PretrainedConfig, directory: Path) -> LoadedModel:
    torch.manual_seed(4)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    return load_model(directory)


@pytest.mark.parametrize(("config", "want"), [w[1:] for w in WINDOWS], ids=[w[0] for w in WINDOWS])
def test_what_the_config_says_is_what_the_layers_do(
    config: PretrainedConfig, want: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is claimed exactly where every layer asks attention for it."""
    seen: list[int | None] = []

    def note(
        _self: object,
        _layer: int,
        qkv: tuple[torch.Tensor, ...],
        _scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        seen.append(window)
        return qkv[0].transpose(0, 1)

    monkeypatch.setattr("engine.attention.StepAttention.attend", note)
    model = load(config, tmp_path)
    one_rank(model, num_blocks=1, block_size=16, num_threads=1).warm_up()
    assert model.spec.window_tokens == want
    assert want == (seen[0] if len(set(seen)) == 1 else None)


@pytest.fixture
def mistral(architectures: Architectures) -> Architecture:
    """Every layer sees WINDOW_TOKENS."""
    return architectures["mistral"]


@pytest.mark.parametrize("num_forgotten", [0, 1, 15, 16, 31, 43])
def test_forgetting_more_or_less_changes_nothing(mistral: Architecture, num_forgotten: int) -> None:
    """Whatever lies before the window may be there or not, for a token and for a chunk."""
    prompt = random_prompt(90, seed=7)
    runner = mistral.model.runner()
    answer = Answer(prompt, tuple(range(5, 20)), chunk=85)
    run_step(runner, [answer])
    runner.kv_cache.data[:, :, 5 * 16 : 5 * 16 + min(num_forgotten, 85 - WINDOW_TOKENS + 1)] = (
        float("nan")
    )
    wanted = mistral.answer(prompt, 10)
    for _ in range(10):
        limit = answer.start - WINDOW_TOKENS + 1
        entry = replace(answer.next_entry(), kv_start=min(num_forgotten, limit))
        answer.absorb(entry, runner.step([entry]).token_ids[0])
    assert list(answer.output) == wanted


def test_forgetting_what_is_still_seen_is_refused(mistral: Architecture) -> None:
    answer = Answer(random_prompt(90, seed=7), tuple(range(6)), start=60)
    entry = replace(answer.next_entry(), kv_start=60 - WINDOW_TOKENS + 2)
    with pytest.raises(ValueError, match="before 14 are gone, but token 60 sees the 47 before it"):
        mistral.model.runner().step([entry])
