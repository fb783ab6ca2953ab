"""A tiny random checkpoint of each architecture, and the oracle its tokens are held to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.engine.tiny import TinyModel

WINDOW_TOKENS = 48
"""Of the sliding layers: less than the prompts and than the answers of these tests."""
TIE_MARGIN = 1e-4
"""Below this difference of the two best logits either token is right (law 1)."""
MAX_TIE_SHARE = 0.001

# Wide initialisation and, where tying is the default, an output head of its own: without, a random
# model repeats one token.
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ALTERNATING: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
UNTIED = {"tie_word_embeddings": False}
OPT_SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GPT2_SHAPE: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "vocab_size": 300,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW_TOKENS),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **MOE),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, sliding_window=None),
    "gemma3": Gemma3TextConfig(**(SHAPE | ALTERNATING | UNTIED), sliding_window=WINDOW_TOKENS),
    "opt": OPTConfig(**(OPT_SHAPE | UNTIED), init_std=0.3),
    "gpt2": GPT2Config(**(GPT2_SHAPE | UNTIED), initializer_range=0.3),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Some answers against the oracle's."""

    num_tokens: int = 0
    num_ties: int = 0
    """Differences that were shown to be ties."""
    problems: tuple[str, ...] = ()

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.num_tokens + other.num_tokens,
            self.num_ties + other.num_ties,
            self.problems + other.problems,
        )

    def check(self) -> None:
        """Assert law 1."""
        assert not self.problems
        assert self.num_ties <= MAX_TIE_SHARE * self.num_tokens


@dataclass(frozen=True)
class Architecture:
    """A checkpoint, loaded twice: with our attention and as the oracle."""

    name: str
    model: TinyModel
    _answers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @cached_property
    def window_tokens(self) -> int | None:
        """What a token sees where every layer slides."""
        return self.model.loaded.spec.window_tokens

    def answer(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy output of `generate()`; asked once per prompt and length."""
        key = (num_tokens, *prompt)
        if key not in self._answers:
            self._answers[key] = self.model.generate(prompt, num_tokens)
        return self._answers[key]

    def compare(self, prompt: Sequence[int], output: Sequence[int]) -> Comparison:
        """With `generate()`, token by token. A difference has to be a tie; what follows one is
        judged by the oracle's own next tokens after it."""
        wanted = self.answer(prompt, len(output))
        pairs = zip(output, wanted, strict=True)
        first = next((i for i, (got, want) in enumerate(pairs) if got != want), None)
        if first is None:
            return Comparison(len(output))
        logits = self._logits(prompt, output)
        margin = float(logits[first].max() - logits[first, [output[first], wanted[first]]].min())
        if margin >= TIE_MARGIN:
            problem = f"{self.name}: token {first} is {output[first]}, want {wanted[first]}"
            return Comparison(len(output), 0, (f"{problem}, margin {margin:.2e}",))
        rest = self.judge([*prompt, *output[: first + 1]], output[first + 1 :])
        return Comparison(first + 1, 1) + rest

    def judge(self, prompt: Sequence[int], output: Sequence[int]) -> Comparison:
        """In one pass: each token has to be the oracle's best after all tokens before it.

        What `generate()` does step by step, for a hundredth of its time.
        """
        if not output:
            return Comparison()
        logits = self._logits(prompt, output)
        margins = (logits.max(-1).values - logits[range(len(output)), list(output)]).tolist()
        problems = tuple(
            f"{self.name}: token {i} is {output[i]}, which is {margin:.2e} below the best"
            for i, margin in enumerate(margins)
            if not margin < TIE_MARGIN
        )
        return Comparison(len(output), sum(m > 0 for m in margins) - len(problems), problems[:1])

    def _logits(self, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """[token, vocabulary], from which each token of the output is chosen."""
        ids = torch.tensor([[*prompt, *output[:-1]]])
        with torch.inference_mode():
            logits = self.model.oracle(ids, use_cache=False).logits
        assert isinstance(logits, torch.Tensor)
        return logits[0, len(prompt) - 1 :]


class Architectures:
    """All of them by name, each written and loaded when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Architecture] = {}

    def __getitem__(self, name: str) -> Architecture:
        if name not in self._made:
            directory = self._directory / name
            torch.manual_seed(3)
            model: Any = AutoModelForCausalLM.from_config(CONFIGS[name])  # type: ignore[no-untyped-call]
            model.save_pretrained(directory)
            self._made[name] = Architecture(name, TinyModel(directory))
        return self._made[name]
