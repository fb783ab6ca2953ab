"""What a client asks for, and how an answer ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from core.ids import HandoffId, RequestId


class FinishReason(StrEnum):
    """Why an answer ended well."""

    STOP = "stop"
    """An end-of-sequence token, a stop token id, or a stop string."""
    LENGTH = "length"
    """`max_tokens` or the model's context limit."""


@dataclass(frozen=True, slots=True, order=True)
class Fence:
    """(resume epoch, attempt): a worker drops everything below the highest it has seen."""

    epoch: int
    """Raised by the client when it resumes on another router."""
    attempt: int
    """Raised by the router each time it places the request anew."""


class GrammarKind(StrEnum):
    """What a grammar's text is."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    JSON_OBJECT = "json_object"
    """Any JSON object; no text."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match as a whole."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely one output token was, under the model's own distribution: before penalties,
    biases, grammar and temperature."""

    logprob: float
    """Natural logarithm, of the chosen token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest, best first."""


_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Greedy when `temperature` is 0."""

    temperature: float = 1.0
    """0 ≤ t ≤ 100; 0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; in [0, 1]."""
    repetition_penalty: float = 1.0
    """> 0; over prompt and output, as in CTRL (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """In [-2, 2]; over output tokens only."""
    frequency_penalty: float = 0.0
    """In [-2, 2]; over output tokens only."""
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    """Token id → added to its logit; in [-100, 100]."""
    seed: int = 0
    """Unsigned 64 bits. The router draws one when the client gave none."""
    num_logprobs: int | None = None
    """0 to 20 likeliest tokens told with each token; None: no log-probabilities at all."""
    grammar: Grammar | None = None
    """What the answer must match; None: anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopParams:
    """When an answer ends. Workers see ids and limits; strings are the router's."""

    max_tokens: int
    """≥ 1; output tokens at most."""
    min_tokens: int = 0
    """End-of-sequence and stop ids cannot be sampled before this many output tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """End-of-sequence ids of the model included, unless `ignore_eos`."""
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one client asked, after validation and tokenization; immutable."""

    request_id: RequestId
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams
    deadline_s: float
    """Moment on the router's clock by which the request has ended, one way or another."""
    child_index: int = 0
    """Which of `n` choices this is; keys its random numbers."""
    epoch: int = 0
    resumed_token_ids: tuple[int, ...] = ()
    """Tokens the client already has from another router: forced, and counted as output."""
    arrived_at_s: float = 0.0
    """Moment on the router's clock."""
    tenant: str = ""
    """Whose it is; "" is a tenant too."""
    priority: int = 0
    """Higher goes first; waiting raises it."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_token_ids)

    @property
    def handoff_id(self) -> HandoffId:
        """Same over all attempts; unique per child."""
        return HandoffId(f"{self.request_id}/{self.child_index}")


def finish_reason(stop: StopParams, num_output_tokens: int, token_id: int) -> FinishReason | None:
    """Whether the answer ends with `token_id`, its `num_output_tokens`-th output token.

    The one definition for both phases; stop strings are judged by the router.
    """
    if token_id in stop.stop_token_ids and num_output_tokens > stop.min_tokens:
        return FinishReason.STOP
    if num_output_tokens >= stop.max_tokens:
        return FinishReason.LENGTH
    return None
