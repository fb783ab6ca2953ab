"""Tiny checkpoints of shapes that do not divide evenly, and of models with unusual parts."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from tests.engine.architectures import (
    ALTERNATING,
    GPT2_SHAPE,
    MOE,
    OPT_SHAPE,
    SHAPE,
    WINDOW_TOKENS,
    Architecture,
)
from tests.engine.tiny import TinyModel

UNEVEN: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 72,
    "intermediate_size": 97,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 3,
}
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}

VARIANTS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama uneven": LlamaConfig(**(SHAPE | UNEVEN)),
    "llama biased": LlamaConfig(**(SHAPE | BIASED)),
    "llama tied": LlamaConfig(**(SHAPE | TIED | {"num_hidden_layers": 3})),
    "llama one kv head": LlamaConfig(**(SHAPE | {"num_key_value_heads": 1})),
    "gemma3 tied": Gemma3TextConfig(
        **(SHAPE | ALTERNATING | TIED | {"pad_token_id": 0}), sliding_window=WINDOW_TOKENS
    ),
    "qwen3_moe one dense": Qwen3MoeConfig(**(SHAPE | MOE), mlp_only_layers=[0]),
    "mixtral uneven": MixtralConfig(
        **(SHAPE | UNEVEN | {"intermediate_size": 100}), num_local_experts=4, sliding_window=None
    ),
    "opt tied": OPTConfig(**(OPT_SHAPE | TIED), init_std=0.3),
    "opt projected": OPTConfig(
        **(OPT_SHAPE | UNTIED | {"word_embed_proj_dim": 32}),
        init_std=0.3,
        do_layer_norm_before=False,
    ),
    "gpt2 tied": GPT2Config(**(GPT2_SHAPE | TIED), initializer_range=0.3),
    "gpt2 uneven": GPT2Config(
        **(GPT2_SHAPE | UNTIED | {"n_embd": 48, "n_head": 3, "n_layer": 3, "vocab_size": 301}),
        initializer_range=0.3,
    ),
}


def save_checkpoint(
    config: PretrainedConfig, directory: Path, dtype: torch.dtype = torch.float32
) -> TinyModel:
    """Random weights; biases too, since zeros would not tell whether they are added."""
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(directory)
    return TinyModel(directory)


def save_numbered(config: PretrainedConfig, directory: Path) -> dict[str, torch.Tensor]:
    """Every element of every parameter is its own number; returns the parameters."""
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter)
    model.save_pretrained(directory)
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}


class Variants:
    """All of them by name, each written when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Architecture] = {}

    def __getitem__(self, name: str) -> Architecture:
        if name not in self._made:
            directory = self._directory / name.replace(" ", "-")
            self._made[name] = Architecture(name, save_checkpoint(VARIANTS[name], directory))
        return self._made[name]
