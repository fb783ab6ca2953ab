"""Requests whose prompts and answers have many lengths, and what static batches make of them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.asking import random_prompt


@dataclass(frozen=True, slots=True)
class MixedRequest:
    """One prompt and how many tokens its answer has, whatever they are."""

    prompt: tuple[int, ...]
    num_output_tokens: int


def mixed_requests(
    rng: random.Random, num_requests: int, *, prompt_tokens: range, output_tokens: range
) -> list[MixedRequest]:
    """In arrival order: prompt lengths uniform, answer lengths log-uniform, ends included."""
    return [
        MixedRequest(
            random_prompt(rng, rng.randint(prompt_tokens.start, prompt_tokens.stop - 1)),
            log_uniform(rng, output_tokens),
        )
        for _ in range(num_requests)
    ]


def log_uniform(rng: random.Random, values: range) -> int:
    """One of `values`, as often between 8 and 16 as between 16 and 32."""
    return round(math.exp(rng.uniform(math.log(values.start), math.log(values.stop - 1))))


def num_useful_tokens(requests: Sequence[MixedRequest]) -> int:
    """Output tokens that somebody asked for."""
    return sum(request.num_output_tokens for request in requests)


def static_batches(requests: Sequence[MixedRequest], size: int) -> list[Sequence[MixedRequest]]:
    """As they arrive, `size` at a time; the last may be smaller."""
    return [requests[first : first + size] for first in range(0, len(requests), size)]


def num_batch_steps(batch: Sequence[MixedRequest]) -> int:
    """Steps until the longest answer of a static batch is done: the others wait for it."""
    return max(request.num_output_tokens for request in batch)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids [prompt, longest] whose ends are aligned, and 1 where a token is real."""
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    padded = zip(pads, prompts, strict=True)
    token_ids = [[pad_token_id] * num_pads + list(prompt) for num_pads, prompt in padded]
    return token_ids, [[0] * num_pads + [1] * (longest - num_pads) for num_pads in pads]
