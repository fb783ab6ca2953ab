"""What differs between reading prompts and writing answers, as the step loop sees it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

from core.request import TokenLogprobs
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
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Of the tokens, one by one; empty: of none."""

    @property
    def samples(self) -> Iterable[tuple[int | None, TokenLogprobs | None]]:
        """Each entry's token, with its log-probabilities where asked for."""
        return zip_longest(self.token_ids, self.logprobs)


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
    num_swapped: int = 0
    """Of them, those whose KV is in host memory, or on its way there or back."""

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
