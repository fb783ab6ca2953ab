"""What a fetch ends with."""

from dataclasses import dataclass

from core.request import FinishReason, TokenLogprobs
from core.timing import HandoffTiming


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedToken:
    """The first token of the attempt, as the source's last frame says."""

    token_id: int
    """Any 32 bits: the caller knows the vocabulary."""
    position: int
    """Index among the output tokens; the caller knows how many were forced."""
    finish_reason: FinishReason | None
    """Set when the answer ended with it: nothing to decode."""
    logprobs: TokenLogprobs | None = None
    """When they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """A committed handoff: `sink.hand_over()` now gives its OWNED blocks."""

    token: FetchedToken
    timing: HandoffTiming
    """All but `decode_queue_s` and `first_step_s`, which the decode step adds."""
    is_exact: bool
    """Bit for bit what the source has; otherwise it must not be cached under an exact name."""
