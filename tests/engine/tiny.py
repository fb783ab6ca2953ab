"""A tiny random Llama, the oracle it is compared with, and short ways to build batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from core.request import SamplingParams, StopParams
from engine.batch import BatchEntry, SampleSpec
from engine.model import LoadedModel, load_model
from engine.runner import LocalRunner, one_rank

BLOCK_SIZE = 16
NUM_BLOCKS = 64
EOS_TOKEN_ID = 7
GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint directory and what is loaded from it."""

    directory: Path

    @cached_property
    def loaded(self) -> LoadedModel:
        """With our attention."""
        return load_model(self.directory)

    @cached_property
    def oracle(self) -> Any:  # noqa: ANN401  generate() comes from a mixin
        """With transformers' own attention."""
        return AutoModelForCausalLM.from_pretrained(self.directory)

    def runner(self, num_blocks: int = NUM_BLOCKS, block_size: int = BLOCK_SIZE) -> LocalRunner:
        """A fresh cache over the shared weights."""
        return one_rank(self.loaded, num_blocks=num_blocks, block_size=block_size, num_threads=1)

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy output of Hugging Face `generate()`, end-of-sequence ignored."""
        out = self.oracle.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [int(token_id) for token_id in out[0, len(prompt) :]]


def tiny_config() -> LlamaConfig:
    """Wide initialisation: with the default one a random model repeats one token."""
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


def random_prompt(length: int, seed: int) -> tuple[int, ...]:
    """Token ids that are neither special nor alike."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(8, 300, (length,), generator=generator).tolist())


def sample_spec(
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    sampling: SamplingParams = GREEDY,
    stop: StopParams | None = None,
    child_index: int = 0,
) -> SampleSpec:
    """Greedy unless told otherwise."""
    return SampleSpec(
        sampling=sampling,
        stop=stop or StopParams(max_tokens=100),
        child_index=child_index,
        prompt_token_ids=prompt,
        output_token_ids=output,
    )


@dataclass(slots=True)
class Answer:
    """One request worked off chunk by chunk, then token by token."""

    prompt: tuple[int, ...]
    block_ids: tuple[int, ...]
    chunk: int = 10**9
    output: tuple[int, ...] = ()
    start: int = 0

    def next_entry(self) -> BatchEntry:
        """The next chunk, or the last sampled token."""
        tokens = (self.prompt + self.output)[self.start :][: self.chunk]
        last = self.start + len(tokens) == len(self.prompt) + len(self.output)
        return BatchEntry(
            key="request",
            token_ids=tokens,
            start=self.start,
            block_ids=self.block_ids,
            sample=sample_spec(self.prompt, self.output) if last else None,
        )

    def absorb(self, entry: BatchEntry, token_id: int | None) -> None:
        """Take what the step gave."""
        assert (token_id is None) == (entry.sample is None)
        self.start = entry.stop
        if token_id is not None:
            self.output += (token_id,)


def run_step(runner: LocalRunner, answers: Sequence[Answer]) -> None:
    """One step over the next entry of each."""
    entries = [answer.next_entry() for answer in answers]
    result = runner.step(entries)
    for answer, entry, token_id in zip(answers, entries, result.token_ids, strict=True):
        answer.absorb(entry, token_id)


def run_all(runner: LocalRunner, answers: Sequence[Answer], num_tokens: int) -> None:
    """Steps of all that are not yet done, until each has `num_tokens` of output."""
    while running := [answer for answer in answers if len(answer.output) < num_tokens]:
        run_step(runner, running)
