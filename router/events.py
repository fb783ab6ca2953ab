"""What an answer is made of, as clients see it; the same words in the router and in its client."""

from dataclasses import dataclass, field

from core.request import FinishReason, TokenLogprobs
from core.timing import HandoffTiming, PrefillTiming


@dataclass(frozen=True, slots=True)
class Accepted:
    """First event: the request was admitted."""

    request_id: str
    model: str
    seed: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one choice."""

    choice: int
    position: int
    """Of the first token among the choice's output tokens."""
    token_ids: tuple[int, ...]
    text: str
    """New text; may lag behind the tokens. A resumed answer's begins with the answer."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of `token_ids`, one by one; empty unless they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """Where one choice's time went; see core.slo for what each figure means."""

    ttft_s: float = 0.0
    router_queue_s: float = 0.0
    """Arrival to the Prefill call."""
    prefill: PrefillTiming = field(default_factory=PrefillTiming)
    first_gap_s: float = 0.0
    """0 for one-token answers, as `tpot_s`."""
    handoff: HandoffTiming = field(default_factory=HandoffTiming)
    tpot_s: float = 0.0
    e2e_s: float = 0.0
    num_attempts: int = 1
    prefill_instance_id: str = ""
    decode_instance_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Last event of one choice."""

    choice: int
    reason: FinishReason
    matched_stop: str
    """The stop string that ended it; empty otherwise."""
    num_output_tokens: int
    timing: RequestTiming


Event = Accepted | Delta | Finished
