"""One request on the decode side, from its Decode call to its end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.ids import HandoffId, RouterId
from core.prefix import BlockHash
from core.request import Fence, TokenLogprobs
from core.timing import HandoffTiming
from core.work import Peer, WorkRequest
from decode_worker.outbox import Letters, Outbox
from engine.batch import BatchEntry, SampleSpec
from kv_transfer.sink import Sink
from kv_transfer.stores import Pin
from policy.fairness import Claim

_NOT_READ = 0
"""In block tables, in the place of a block that is gone: any valid id."""


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """A committed request: it owns its blocks and gets a token with each step."""

    work: WorkRequest
    claim: Claim
    """From its Decode call."""
    block_ids: list[int]
    """Block table; empty while its KV is in host memory, and once it has ended."""
    block_size: int
    num_kv_tokens: int
    """Leading tokens whose KV is in the blocks: all but the last output token."""
    output_token_ids: list[int]
    """Forced ones included."""
    logprobs: TokenLogprobs | None
    """Of the last output token, when they were asked for."""
    committed_at_s: float
    timing: HandoffTiming | None
    """Until it was told, with the first step."""
    is_exact: bool
    """Its KV is what its tokens' names promise; otherwise none of it is named, nor what is computed
    from it."""
    pins: list[Pin] = field(default_factory=list)
    """Of all its blocks, while it takes part in steps."""
    chain: list[BlockHash] = field(default_factory=list)
    """Names of its full blocks, as far as they were given."""
    num_gone_blocks: int = 0
    """Leading blocks that left the model's window and are others'."""

    @property
    def needs_block(self) -> bool:
        """The next token's KV begins a block that is not there yet."""
        return self.num_kv_tokens >= len(self.block_ids) * self.block_size

    @property
    def kv_start(self) -> int:
        """Leading tokens whose KV is gone."""
        return self.num_gone_blocks * self.block_size

    @property
    def held_block_ids(self) -> Sequence[int]:
        """The blocks that it has."""
        return self.block_ids[self.num_gone_blocks :]

    @property
    def kv_token_ids(self) -> Sequence[int]:
        """Tokens whose KV is computed, from the first."""
        return [*self.work.prompt_token_ids, *self.output_token_ids][: self.num_kv_tokens]

    def give_up_blocks(self) -> Sequence[int]:
        """All that it has, to be released."""
        held, self.block_ids = self.held_block_ids, []
        return held

    def give_up_first(self, num_gone: int) -> Sequence[int]:
        """Blocks that hold none but the first `num_gone` blocks' tokens, to be released."""
        gone = self.block_ids[self.num_gone_blocks : num_gone]
        self.block_ids[self.num_gone_blocks : num_gone] = [_NOT_READ] * len(gone)
        self.num_gone_blocks = num_gone
        return gone

    def take_blocks(self, block_ids: Sequence[int]) -> None:
        """For the KV that it gave up blocks of, in the same order."""
        self.block_ids = [*([_NOT_READ] * self.num_gone_blocks), *block_ids]

    def entry(self) -> BatchEntry:
        """Its part of the next step."""
        work = self.work
        return BatchEntry(
            key=work.handoff_id,
            token_ids=self.output_token_ids[-1:],
            start=self.num_kv_tokens,
            block_ids=self.block_ids,
            kv_start=self.kv_start,
            sample=SampleSpec(
                sampling=work.sampling,
                stop=work.stop,
                child_index=work.child_index,
                prompt_token_ids=work.prompt_token_ids,
                output_token_ids=self.output_token_ids,
            ),
        )


@dataclass(slots=True, kw_only=True, eq=False)
class DecodeJob:
    """What the instance knows of a handoff, and of the answer it becomes."""

    work: WorkRequest
    """Of the newest attempt."""
    claim: Claim
    peer: Peer
    """Where the KV is fetched from."""
    sink: Sink
    outbox: Outbox
    """Of its router."""
    letters: Letters
    answer: Answer | None = None
    """Once committed."""
    deadline: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    """Fetches, until the commit."""
    attempt: asyncio.Timeout | None = None
    """Around the running fetch: a retarget ends it."""
    retargeted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def handoff_id(self) -> HandoffId:
        """The same over all attempts."""
        return self.work.handoff_id

    @property
    def fence(self) -> Fence:
        """Of the newest attempt."""
        return self.work.fence

    @property
    def router_id(self) -> RouterId:
        """Who reads it."""
        return self.work.router_id
