"""A tiny random Llama with diverse outputs, and the oracle it is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from engine.model import LoadedModel, load_model
from engine.runner import Runner

BLOCK_SIZE = 16
NUM_BLOCKS = 64
EOS_TOKEN_ID = 7


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint directory and what is loaded from it."""

    directory: Path

    @cached_property
    def loaded(self) -> LoadedModel:
        """With our attention."""
        return load_model(self.directory)

    @cached_property
    def oracle(self) -> torch.nn.Module:
        """With transformers' own."""
        return AutoModelForCausalLM.from_pretrained(self.directory).eval()

    def runner(self, num_blocks: int = NUM_BLOCKS, block_size: int = BLOCK_SIZE) -> Runner:
        """A fresh cache over the shared weights."""
        return Runner(self.loaded, num_blocks=num_blocks, block_size=block_size, num_threads=1)

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy output of Hugging Face `generate()`."""
        out = self.oracle.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()


def tiny_config() -> LlamaConfig:
    """Wide initialisation: the default one makes a random model repeat one token."""
    return LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=EOS_TOKEN_ID,
        bos_token_id=1,
        pad_token_id=None,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Saved once per session."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(1)
    LlamaForCausalLM(tiny_config()).save_pretrained(directory)
    return TinyModel(directory)


@pytest.fixture(scope="session")
def prompt_of() -> Callable[[int, int], tuple[int, ...]]:
    """(length, seed) → a random prompt."""

    def make(length: int, seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(8, 300, (length,), generator=generator).tolist())

    return make
