"""The prefill end of one handoff: lease, reader, credits and segment order; no IO."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from core.blocks import BlockState
from core.errors import StaleFence
from core.handoff import SOURCE, SourceEvent, SourceState
from core.ids import HandoffId
from core.kv_layout import KvLayout, KvRange, cut_tokens
from core.request import Fence, FinishReason, TokenLogprobs
from kv_transfer.stores import Blocks, Pin

NO_ATTEMPT = Fence(0, 0)
"""Below every attempt: they count from 1."""


class Outcome(StrEnum):
    """How a lease ended."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """What prefill sampled, for the last frame of the Fetch."""

    token_id: int
    position: int
    """Index among the output tokens."""
    finish_reason: FinishReason | None
    sampled_at_s: float
    logprobs: TokenLogprobs | None = None
    """When they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One piece to send."""

    index: int
    range: KvRange
    resent: bool
    """Asked for again: its digest is not added twice."""


@dataclass(frozen=True, slots=True)
class Read:
    """A gather under way: the blocks cannot be handed out before it ends."""

    segment: Segment
    block_ids: tuple[int, ...]
    pin: Pin
    generations: tuple[int, ...]


class Reader:
    """One Fetch stream's place in the KV: what was sent, and what credit allows."""

    def __init__(self, fence: Fence, *, max_segment_bytes: int) -> None:
        self.fence = fence
        self.credit_tokens = 0
        self.num_cached_tokens = 0
        """The reader has them already; known with its first credit, before anything is sent."""
        self.num_segments = 0
        self._max_segment_bytes = max_segment_bytes
        self._groups: Sequence[range] = ()
        self._sent: list[int] = []
        self._ranges: list[KvRange] = []
        self._resend: list[int] = []

    def plan(self, groups: Sequence[range]) -> None:
        """Fix the layer groups, once the prefill has started."""
        self._groups = groups
        self._sent = [self.num_cached_tokens] * len(self._groups)

    def credit(self, num_tokens: int, num_cached_tokens: int) -> None:
        """KV of the tokens from the one to the other may be sent. Cumulative; late and repeated
        credits do no harm."""
        if not self.credit_tokens:
            self.num_cached_tokens = num_cached_tokens
            self._sent = [num_cached_tokens] * len(self._groups)
        self.credit_tokens = max(self.credit_tokens, num_tokens)

    def resend(self, index: int) -> None:
        """Queue an already sent segment again; unknown and already queued ones are dropped."""
        if 0 <= index < len(self._ranges) and index not in self._resend:
            self._resend.append(index)

    def next_segment(self, layout: KvLayout, frontier: Sequence[int]) -> Segment | None:
        """The next piece that is computed and covered by credit; None when there is none."""
        if self._resend:
            index = self._resend.pop(0)
            return Segment(index=index, range=self._ranges[index], resent=True)
        for group, layers in enumerate(self._groups):
            ready = min(frontier[layers[-1]], self.credit_tokens)
            if ready > self._sent[group]:
                return self._take(group, layers, ready, layout)
        return None

    def _take(self, group: int, layers: range, ready: int, layout: KvLayout) -> Segment:
        unsent = range(self._sent[group], ready)
        tokens = next(cut_tokens(unsent, layers, layout, self._max_segment_bytes))
        self._sent[group] = tokens.stop
        piece = KvRange(layers, tokens)
        self._ranges.append(piece)
        self.num_segments += 1
        return Segment(index=self.num_segments - 1, range=piece, resent=False)

    def waits_for_credit(self, frontier: Sequence[int]) -> bool:
        """Something is computed that no credit covers yet."""
        return any(
            frontier[layers[-1]] > self._sent[group] >= self.credit_tokens
            for group, layers in enumerate(self._groups)
        )

    def is_done(self, num_tokens: int) -> bool:
        """Every token of every layer was sent, and nothing is asked for again."""
        return bool(self._groups) and not self._resend and min(self._sent) >= num_tokens


@dataclass(slots=True, kw_only=True)
class Source:
    """One handoff on the prefill side. All methods run on the event loop's thread."""

    handoff_id: HandoffId
    layout: KvLayout
    blocks: Blocks
    lease_ttl_s: float
    expires_at_s: float
    """Of the wait for the Prefill call, later of the lease; this host's clock."""
    state: SourceState = SourceState.AWAITED
    fence: Fence = NO_ATTEMPT
    """Of the prefill attempt; (0, 0) while awaited."""
    reader: Reader | None = None
    newest_fetch: Fence = NO_ATTEMPT
    """Of all readers, gone ones too: a decode that was replaced must not read again."""
    block_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    groups: Sequence[range] = ()
    """Of layers, whose KV leaves together while it is computed."""
    first_token: FirstToken | None = None
    outcome: Outcome | None = None
    frontier: list[int] = field(default_factory=list)
    """Per layer, how many leading tokens are computed."""
    _held_as: BlockState = BlockState.OWNED

    def accept(self, fence: Fence) -> None:
        """The Prefill call of `fence` arrived.

        Raises WrongState when one is here already, StaleFence when the client has resumed on
        another router since.
        """
        # Within an epoch the reader may be ahead: a new decode reads an earlier attempt's KV.
        if self.reader is not None and fence.epoch < self.reader.fence.epoch:
            raise StaleFence(f"{self.handoff_id}: {fence} is behind {self.reader.fence}")
        self._advance(SourceEvent.PREFILL)
        self.fence = fence

    def start(
        self, block_ids: Sequence[int], num_tokens: int, groups: Sequence[range] = ()
    ) -> None:
        """All blocks of the prompt are OWNED; the first step comes next. Its KV leaves in these
        groups of layers, which are all of them; in one if none are given."""
        self._advance(SourceEvent.START)
        self.block_ids = tuple(block_ids)
        self.num_tokens = num_tokens
        self.groups = groups or self._whole
        self.frontier = [0] * self.layout.num_layers
        if self.reader is not None:
            self._plan(self.reader)

    def progress(self, layer: int, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens of `layer` is written."""
        if self._advance(SourceEvent.PROGRESS):
            self.frontier[layer] = num_tokens

    def finish(self, token: FirstToken, now_s: float) -> bool:
        """The first token is sampled: the lease begins. False when the attempt has ended."""
        if not self._advance(SourceEvent.FINISH):
            return False
        self.first_token = token
        self.frontier = [self.num_tokens] * self.layout.num_layers
        self.blocks.move(self.block_ids, BlockState.OWNED, BlockState.LEASED)
        self._held_as = BlockState.LEASED
        self.expires_at_s = now_s + self.lease_ttl_s
        return True

    def fetch(self, reader: Reader, now_s: float) -> None:
        """A Fetch opened. The newest fence reads; one behind it, or behind the prefill (whose
        forced tokens may be more), raises StaleFence."""
        self._check_fence(reader.fence)
        self._advance(SourceEvent.FETCH)
        self.reader = reader
        self.newest_fetch = reader.fence
        if self.state is SourceState.LEASED:
            self.expires_at_s = now_s + self.lease_ttl_s
        if self.frontier:
            self._plan(reader)

    def fetch_lost(self, reader: Reader) -> None:
        """The reader's stream ended. Ends a handoff that nobody else knows."""
        if reader is not self.reader:
            return
        before = self.state
        if self._advance(SourceEvent.FETCH_LOST):
            self.reader = None
            if before is SourceState.AWAITED:
                self._end(Outcome.ABORTED)

    def credit(self, reader: Reader, num_tokens: int, num_cached_tokens: int = 0) -> None:
        """The reader has room for the first `num_tokens` tokens, and has the first
        `num_cached_tokens` already. Late and repeated credits do no harm."""
        if reader is self.reader and self._advance(SourceEvent.CREDIT):
            reader.credit(num_tokens, num_cached_tokens)

    def refetch(self, reader: Reader, index: int) -> None:
        """A segment arrived damaged."""
        if reader is self.reader and self._advance(SourceEvent.REFETCH):
            reader.resend(index)

    def renew(self, fence: Fence, now_s: float) -> None:
        """Extend the lease. Raises StaleFence or WrongState."""
        self._check_fence(fence)
        if self._advance(SourceEvent.RENEW) and self.state is SourceState.LEASED:
            self.expires_at_s = now_s + self.lease_ttl_s

    def release(self, fence: Fence, *, committed: bool) -> None:
        """The reader or the router ends it; idempotent; stale ones raise StaleFence."""
        if self.state is SourceState.ENDED:
            return
        self._check_fence(fence)
        self.end(Outcome.COMMITTED if committed else Outcome.ABORTED)

    def end(self, outcome: Outcome) -> None:
        """End it for any reason; blocks return as soon as their last reader has."""
        event = {Outcome.COMMITTED: SourceEvent.COMMIT, Outcome.EXPIRED: SourceEvent.EXPIRE}
        if self._advance(event.get(outcome, SourceEvent.ABORT)):
            self._end(outcome)

    def hand_over(self) -> tuple[int, ...]:
        """End the lease as committed; its blocks, OWNED now, are the caller's."""
        self._advance(SourceEvent.COMMIT)
        held, self.block_ids = self.block_ids, ()
        self.blocks.move(held, BlockState.LEASED, BlockState.OWNED)
        self._end(Outcome.COMMITTED)
        return held

    def expire(self, now_s: float) -> bool:
        """End the lease or the wait if its time has passed; whether it did."""
        if now_s < self.expires_at_s or self.state is SourceState.ENDED:
            return False
        self.end(Outcome.EXPIRED)
        return self.outcome is Outcome.EXPIRED

    def begin_read(self, segment: Segment) -> Read:
        """Pin the blocks of one segment for a gather."""
        size = self.layout.block_size
        tokens = segment.range.tokens
        ids = self.block_ids[tokens.start // size : self.layout.num_blocks(tokens.stop)]
        return Read(segment, ids, self.blocks.pin(ids), self.blocks.generations(ids))

    def end_read(self, read: Read) -> bool:
        """Unpin; False when a block changed hands meanwhile and the bytes must not be sent."""
        intact = self.blocks.generations(read.block_ids) == read.generations
        self.blocks.unpin(read.pin)
        return intact

    @property
    def is_computing(self) -> bool:
        """Blocks are allocated and steps may still run."""
        return self.state is SourceState.COMPUTING

    @property
    def _whole(self) -> Sequence[range]:
        return (range(self.layout.num_layers),)

    def _plan(self, reader: Reader) -> None:
        # When all is computed there is nothing to overlap with: the fewest segments are best.
        is_computed = self.state is SourceState.LEASED
        reader.plan(self._whole if is_computed else self.groups)

    def _check_fence(self, fence: Fence) -> None:
        newest = max(self.fence, self.newest_fetch)
        if fence < newest:
            raise StaleFence(f"{self.handoff_id}: {fence} is behind {newest}")

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        held, self.block_ids = self.block_ids, ()
        self.blocks.release(held, self._held_as)

    def _advance(self, event: SourceEvent) -> bool:
        state = SOURCE.advance(self.state, event)
        if state is None:
            return False
        self.state = state
        return True
