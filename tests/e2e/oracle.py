"""Hugging Face `generate()` on the same weights: what law 1 compares with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.e2e.asking import Answer

MAX_TIE_SHARE = 0.001
TIE_MARGIN = 1e-4
"""Below this difference of the two best logits either token is right (law 1)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer against the oracle's."""

    num_tokens: int
    num_ties: int
    """Differences that were shown to be ties; the answer after one is not compared."""
    problem: str | None


class Oracle:
    """Greedy answers of transformers' own generate(), float32, one prompt at a time."""

    def __init__(self, model_dir: Path) -> None:
        # Any: transformers' own types do not describe what from_pretrained returns.
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model = model.eval()
        # Whatever the checkpoint says: generate() takes what its argument leaves open from here.
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._answers: dict[tuple[int, ...], list[int]] = {}
        """By prompt: the longest asked for so far; a shorter one is its beginning."""

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Greedy output tokens; end-of-sequence tokens are ordinary ones here."""
        known = self._answers.get(tuple(prompt), [])
        if len(known) < max_tokens:
            known = self._answers[tuple(prompt)] = self._generate(prompt, max_tokens)
        return known[:max_tokens]

    def _generate(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return [int(token) for token in out[0, len(prompt) :]]

    def compare(self, prompt: Sequence[int], output: Sequence[int]) -> Comparison:
        """Token by token; a difference counts as a tie only when the logits say so."""
        wanted = self.answer(prompt, len(output))
        for index, (got, want) in enumerate(zip(output, wanted, strict=True)):
            if got == want:
                continue
            margin = self._margin([*prompt, *wanted[:index]], got)
            if margin < TIE_MARGIN:
                return Comparison(index + 1, 1, None)
            return Comparison(
                index + 1, 0, f"token {index}: got {got}, want {want}, margin {margin:.2e}"
            )
        return Comparison(len(output), 0, None)

    def _margin(self, tokens: list[int], other: int) -> float:
        """How far below the best logit `other` is after `tokens`."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([tokens])).logits[0, -1]
        return float(logits.max() - logits[other])


def compare_all(oracle: Oracle, answers: Sequence[Answer]) -> str:
    """Assert law 1 for all; returns the line to print."""
    compared = [oracle.compare(a.question.prompt, a.token_ids) for a in answers]
    problems = [c.problem for c in compared if c.problem]
    assert not problems
    num_tokens = sum(c.num_tokens for c in compared)
    num_ties = sum(c.num_ties for c in compared)
    assert num_ties <= MAX_TIE_SHARE * num_tokens
    return f"{len(answers)} answers, {num_tokens} tokens equal to generate(), {num_ties} ties"
