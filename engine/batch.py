"""What one step computes, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.request import SamplingParams, StopParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """Everything the choice of one token depends on besides the logits."""

    sampling: SamplingParams
    stop: StopParams
    """For `min_tokens`: the stop ids are banned until then."""
    child_index: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """So far; the sampled token's position is `len(output_token_ids)`."""

    @property
    def position(self) -> int:
        """Index of the token to be sampled among the output tokens."""
        return len(self.output_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One request's part of a step: a prompt chunk, or the last sampled token."""

    key: str
    """Names the request to the caller; opaque here."""
    token_ids: Sequence[int]
    start: int
    """Tokens of the request whose KV is in the cache already."""
    block_ids: Sequence[int]
    """Block table; covers at least `start + len(token_ids)` tokens."""
    sample: SampleSpec | None
    """None for a chunk that is not the prompt's last: nothing is sampled."""

    @property
    def stop(self) -> int:
        """Tokens of the request whose KV is in the cache after the step."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Per entry of the batch, in its order; None where nothing was sampled."""

    token_ids: tuple[int | None, ...]
    logprobs: tuple[float | None, ...]
    """Of the sampled token under the model's own distribution, before penalties and filters."""
    compute_s: float
