"""What differs between reading prompts and writing answers, as the step loop sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.batch import BatchEntry


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """One phase's part of a step."""

    entries: Sequence[BatchEntry] = ()
    layers: frozenset[int] = field(default_factory=frozenset)
    """Layers after which the phase wants to hear of the step while it runs; few, each is a wake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What the entries of one phase became, in their order."""

    token_ids: Sequence[int | None]
    began_at_s: float
    """Both are moments on this host's clock."""
    ended_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLoad:
    """How busy one phase is; the sum over the phases is the instance's load."""

    num_prefilling: int = 0
    num_pending_prompt_tokens: int = 0
    num_incoming: int = 0
    num_decoding: int = 0
    num_context_tokens: int = 0
    num_prompts: int = 0
    """Prompts known to prefill, leased ones included."""
    num_answers: int = 0
    """Committed answers known to decode."""

    @property
    def num_known(self) -> int:
        """Requests that have not ended, in whatever state."""
        return self.num_prompts + self.num_incoming + self.num_answers


class Phase(Protocol):
    """Prefill or decode. Everything else of an instance is shared. All on the event loop."""

    def schedule(self, num_others: int) -> PhaseWork:
        """What to compute next, beside `num_others` entries of the phases asked before."""
        ...

    def layer_written(self, layer: int) -> None:
        """The running step has written the KV of all layers up to `layer`."""
        ...

    def absorb(self, outcome: StepOutcome) -> None:
        """The step that was last scheduled has returned."""
        ...

    def load(self) -> PhaseLoad:
        """How busy it is now."""
        ...
