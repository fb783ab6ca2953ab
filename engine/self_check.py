"""Paged attention against transformers' own, on the loaded weights, before anything is served.

An architecture may do something between its layers and its attention that no list of ours knows
of. Then its answers would be wrong without a word; here they are an error at the start.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from core.config import EngineConfig
from core.errors import ModelError
from core.request import SamplingParams, StopParams
from engine import attention
from engine.architecture import one_line
from engine.batch import BatchEntry, SampleSpec
from engine.model import LoadedModel, load_model, make_fast, with_weights
from engine.runner import one_rank

BLOCK_SIZE = 16
NUM_TOKENS = 24
"""Of the prompt: two chunks, and more than one block."""
LONGEST_WINDOW_TOKENS = 64
"""A window up to this is crossed; longer ones would cost more than a start should."""
TOKENS_PAST_WINDOW = 9
LIMITS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 0.25}
"""Largest difference of a logit, in shares of their spread. Measured where all is right: below
3e-6, 1e-2 and 0.08 in tiny random models, whose attention is sharper than any trained one's (1e-6,
3e-3 and 1.4e-2 in SmolLM2); with a window of 10 that was not kept in every layer: above 0.4."""


def load_checked(model_dir: Path, engine: EngineConfig) -> LoadedModel:
    """A model ready to run that computes what transformers computes. Raises ModelError.

    It is compared before and after its parts are replaced by faster ones. Weights are rounded after
    that: by how much answers may change then, no limit could tell.
    """
    model = load_model(model_dir, dtype=engine.dtype, device=engine.device, fast=False)
    check_against_eager(model, num_threads=engine.num_threads)
    return with_weights(model, engine.weights)


def check_against_eager(model: LoadedModel, *, num_threads: int) -> float:
    """Raise ModelError when paged attention is not the model's own; else return the difference.

    A random prompt in two chunks and one decode step, against one pass of the same module with
    attention "eager", in shares of the spread of all logits compared. Between the two the module's
    parts are replaced by faster ones, so `model` must be loaded without them.
    """
    tokens = _tokens(model)
    num_prompt_tokens = len(tokens) - 1
    ends = (num_prompt_tokens // 2, num_prompt_tokens, num_prompt_tokens + 1)
    name = model.spec.architecture
    try:
        eager = _eager_logits(model, tokens, ends).float()
        make_fast(model.module, model.device)
        paged = _paged_logits(model, tokens, ends, num_threads).float()
    except ModelError:
        raise
    except Exception as error:  # of every architecture another
        raise ModelError(f"{name} does not run with paged attention: {one_line(error)}") from error
    difference = _difference(model, paged, eager)
    # Said so that a NaN is refused.
    if not difference <= LIMITS[model.spec.dtype]:
        raise ModelError(
            f"{name} is not supported: with paged attention its logits differ from its own by "
            f"{difference:.2g} of their spread, at most {LIMITS[model.spec.dtype]:g} in "
            f"{model.spec.dtype}"
        )
    return difference


def _difference(model: LoadedModel, paged: torch.Tensor, eager: torch.Tensor) -> float:
    """The largest of all rows, in shares of the spread."""
    spread = float(eager.max() - eager.min())
    rows = (paged - eager).abs().amax(dim=1)
    # A rounding error of 16 bits may choose another expert, which moves a whole row (0.3 of the
    # spread in a tiny random Mixtral): there the closest row counts.
    narrow = model.spec.dtype != "float32" and _has_experts(model)
    worst = rows.min() if narrow else rows.max()
    return float(worst) / spread if spread > 0 else float("nan")


def _has_experts(model: LoadedModel) -> bool:
    config: Any = model.module.config
    text = config.get_text_config()
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(getattr(text, name, None) for name in counts)


def _tokens(model: LoadedModel) -> list[int]:
    config: Any = model.module.config
    window = getattr(config.get_text_config(), "sliding_window", None) or 0
    num_tokens = NUM_TOKENS
    if window <= LONGEST_WINDOW_TOKENS:
        num_tokens = max(num_tokens, window + TOKENS_PAST_WINDOW)
    num_tokens = min(num_tokens, model.spec.max_context_tokens - 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(model.spec.vocab_size, (num_tokens + 1,), generator=generator)
    return [int(token_id) for token_id in drawn]


def _paged_logits(
    model: LoadedModel, tokens: Sequence[int], ends: Sequence[int], num_threads: int
) -> torch.Tensor:
    """Logits after the last token of each step, with a small cache of their own."""
    num_blocks = -(-len(tokens) // BLOCK_SIZE)
    runner = one_rank(model, num_blocks=num_blocks, block_size=BLOCK_SIZE, num_threads=num_threads)
    rows: list[torch.Tensor] = []
    # As instances compute them: nothing but the runner knows how a step is run.
    hook = model.module.register_forward_hook(lambda _, __, out: rows.append(out.logits[0]))
    try:
        for start, stop in zip((0, *ends), ends, strict=False):
            runner.step([_entry(tokens[start:stop], start, range(num_blocks))])
    finally:
        hook.remove()
    return torch.cat(rows)


def _eager_logits(model: LoadedModel, tokens: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
    """The same rows from one pass with transformers' plainest attention."""
    module: Any = model.module
    module.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            logits = module(
                input_ids=torch.tensor([list(tokens)], device=model.device),
                position_ids=torch.arange(len(tokens), device=model.device)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(ends, device=model.device) - 1,
            ).logits[0]
    finally:
        module.set_attn_implementation(attention.NAME)
    assert isinstance(logits, torch.Tensor)
    return logits


def _entry(token_ids: Sequence[int], start: int, block_ids: Sequence[int]) -> BatchEntry:
    spec = SampleSpec(
        sampling=SamplingParams(temperature=0),
        stop=StopParams(max_tokens=1),
        child_index=0,
        prompt_token_ids=(),
        output_token_ids=(),
    )
    return BatchEntry(
        key="self-check", token_ids=token_ids, start=start, block_ids=block_ids, sample=spec
    )
