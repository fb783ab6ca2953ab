"""The strongest plain baseline: transformers with SDPA, its own cache and one row of logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from bench.mixed_lengths import MixedRequest, left_padded, num_batch_steps
from engine.checkpoint import quiet_transformers

NUM_THREADS = 1
PAD_TOKEN_ID = 0
"""Any: what is padded is masked."""


class Baseline:
    """A float32 model of transformers on the CPU, greedy, in whatever thread calls it."""

    def __init__(self, model_dir: Path) -> None:
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
            )
        self._model = model.eval().requires_grad_(False)
        # Every answer has the length asked for: nothing may end one early.
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=None, pad_token_id=PAD_TOKEN_ID
        )
        self._begun: tuple[DynamicCache, int] | None = None

    @property
    def num_weight_bytes(self) -> int:
        """Of every parameter once; weights that are tied are one parameter."""
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def prefill(self, prompt: Sequence[int]) -> int:
        """The first token after a prompt, in one forward pass."""
        (token_id,) = self._forward([list(prompt)], self._fresh_cache())
        return token_id

    def begin(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Compute prompts of one length, to be continued by `step`; their first tokens."""
        cache = self._fresh_cache()
        self._begun = cache, len(prompts[0])
        return self._forward([list(prompt) for prompt in prompts], cache)

    def rewind(self) -> None:
        """Forget all that came after the prompts."""
        cache, num_prompt_tokens = self._cache()
        if num_later := cache.get_seq_length() - num_prompt_tokens:
            # Negative: how many to remove. Not every version takes how many to keep.
            cache.crop(-num_later)

    def step(self, token_ids: Sequence[int]) -> list[int]:
        """One more token of every answer."""
        cache, _ = self._cache()
        return self._forward([[token_id] for token_id in token_ids], cache)

    def generate(self, batch: Sequence[MixedRequest]) -> None:
        """One static batch, left padded, until its longest answer is done."""
        _use_threads()
        num_steps = num_batch_steps(batch)
        token_ids, mask = left_padded([request.prompt for request in batch], PAD_TOKEN_ID)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(token_ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=num_steps,
            )
        if output.shape != (len(batch), len(token_ids[0]) + num_steps):
            raise RuntimeError(f"the baseline's answers have shape {tuple(output.shape)}")

    def _forward(self, token_ids: list[list[int]], cache: DynamicCache) -> list[int]:
        _use_threads()
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(token_ids),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            chosen: list[int] = logits[:, -1].argmax(-1).tolist()
        return chosen

    def _fresh_cache(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def _cache(self) -> tuple[DynamicCache, int]:
        assert self._begun is not None, "begin comes before step and rewind"
        return self._begun


def _use_threads() -> None:
    # Of the calling thread: OpenMP keeps its own number per thread.
    if torch.get_num_threads() != NUM_THREADS:
        torch.set_num_threads(NUM_THREADS)
