"""What one step computes, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.request import SamplingParams, StopParams, TokenLogprobs


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
    kv_start: int = 0
    """Tokens whose KV is gone: they left the window of every layer, and their blocks are
    another's. What `block_ids` holds in their place is not read."""
    copies: Sequence[tuple[int, int]] = ()
    """(source, target) blocks copied whole before anything of the step is computed: a shared
    block that this request is about to write into."""

    @property
    def stop(self) -> int:
        """Tokens of the request whose KV is in the cache after the step."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Per entry of the batch, in its order; None where nothing was sampled."""

    token_ids: tuple[int | None, ...]
    logprobs: tuple[TokenLogprobs | None, ...]
    """Only of those that asked."""
    compute_s: float
