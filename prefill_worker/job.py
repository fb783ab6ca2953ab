"""One prompt on the prefill side, from its Prefill call to the end of its lease."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.prefix import BlockHash
from core.request import FinishReason, TokenLogprobs
from core.timing import PrefillTiming
from core.work import WorkRequest
from engine.batch import BatchEntry, SampleSpec
from kv_transfer.source import Outcome, Source
from kv_transfer.stores import Pin
from policy.fairness import Claim

MAX_EVENTS = 3
"""Started, token, ended: each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first step begins."""

    queue_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The first token."""

    position: int
    token_id: int
    finish_reason: FinishReason | None
    timing: PrefillTiming
    logprobs: TokenLogprobs | None = None
    """When they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The KV is no longer kept; nothing follows."""

    outcome: Outcome


Event = Started | Sampled | Ended


@dataclass(slots=True, kw_only=True, eq=False)
class PrefillJob:
    """What the instance knows of a prompt."""

    work: WorkRequest
    token_ids: Sequence[int]
    """Prompt and forced tokens."""
    only_first_token: bool
    arrived_at_s: float
    chain: Sequence[BlockHash] = ()
    """Names of the full blocks of `token_ids`."""
    waits_for: BlockHash | None = None
    """Name of a block that another prompt computes."""
    source: Source | None = None
    block_ids: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    """(shared block, own block): copied by the first step, of which the one chunk is one token."""
    pins: list[Pin] = field(default_factory=list)
    layers: frozenset[int] = field(default_factory=frozenset)
    """After these a segment can leave."""
    fetched: range = range(0)
    """Tokens whose KV was fetched for it before it was queued."""
    num_hit_tokens: int = 0
    """Whose KV was there when it started, fetched or not."""
    num_computed: int = 0
    """Hits included."""
    began_at_s: float | None = None
    """Of the first step."""
    events: asyncio.Queue[Event] = field(default_factory=lambda: asyncio.Queue(MAX_EVENTS))

    @property
    def num_tokens(self) -> int:
        """Whose KV is to be computed."""
        return len(self.token_ids)

    @property
    def num_fetched_tokens(self) -> int:
        """Of the hits, those that were fetched for it."""
        return len(range(self.fetched.start, min(self.fetched.stop, self.num_hit_tokens)))

    @property
    def claim(self) -> Claim:
        """To its turn."""
        return Claim(
            tenant=self.work.tenant, priority=self.work.priority, arrived_at_s=self.arrived_at_s
        )

    @property
    def position(self) -> int:
        """Index of the token to be sampled among the output tokens."""
        return len(self.work.output_token_ids)

    def entry(self, tokens: range) -> BatchEntry:
        """Its chunk of the next step; the last one samples."""
        return BatchEntry(
            key=self.work.handoff_id,
            token_ids=self.token_ids[tokens.start : tokens.stop],
            start=tokens.start,
            block_ids=self.block_ids,
            sample=self._spec() if tokens.stop == self.num_tokens else None,
            copies=self.copies,
        )

    def _spec(self) -> SampleSpec:
        return SampleSpec(
            sampling=self.work.sampling,
            stop=self.work.stop,
            child_index=self.work.child_index,
            prompt_token_ids=self.work.prompt_token_ids,
            output_token_ids=self.work.output_token_ids,
        )
