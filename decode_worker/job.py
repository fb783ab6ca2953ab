"""One request on the decode side, from its Decode call to its end."""

import asyncio
from dataclasses import dataclass, field

from core.ids import HandoffId, RouterId
from core.request import Fence
from core.timing import HandoffTiming
from core.work import WorkRequest
from decode_worker.outbox import Letters, Outbox
from engine.batch import BatchEntry, SampleSpec
from kv_transfer.sink import Sink
from kv_transfer.stores import Pin


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """A committed request: it owns its blocks and gets a token with each step."""

    work: WorkRequest
    arrived_at_s: float
    """Of the Decode call, on this host's clock."""
    block_ids: list[int]
    block_size: int
    num_kv_tokens: int
    """Leading tokens whose KV is in the blocks: all but the last output token."""
    output_token_ids: list[int]
    """Forced ones included."""
    committed_at_s: float
    timing: HandoffTiming | None
    """Until it was told, with the first step."""
    pins: list[Pin] = field(default_factory=list)
    """Of all its blocks, while it takes part in steps."""

    @property
    def needs_block(self) -> bool:
        """The next token's KV begins a block that is not there yet."""
        return self.num_kv_tokens >= len(self.block_ids) * self.block_size

    def entry(self) -> BatchEntry:
        """Its part of the next step."""
        work = self.work
        return BatchEntry(
            key=work.handoff_id,
            token_ids=self.output_token_ids[-1:],
            start=self.num_kv_tokens,
            block_ids=self.block_ids,
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
    arrived_at_s: float
    address: str
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
