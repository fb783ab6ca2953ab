"""The decode end of one handoff: reservation, credits, coverage, digest and commit; no IO."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from core.blocks import BlockState
from core.errors import StaleFence
from core.handoff import SINK, SinkEvent, SinkState
from core.ids import HandoffId
from core.kv_layout import KvLayout, KvRange
from core.request import Fence
from kv_transfer.stores import Blocks, Pin

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Write:
    """A scatter under way: the blocks cannot be handed out before it ends."""

    attempt: Fence
    range: KvRange
    block_ids: tuple[int, ...]
    pin: Pin


@dataclass(slots=True, kw_only=True)
class Sink:
    """One handoff on the decode side. All methods run on the event loop's thread."""

    handoff_id: HandoffId
    layout: KvLayout
    blocks: Blocks
    fence: Fence
    max_refetches: int = 3
    state: SinkState = SinkState.WAITING
    block_ids: tuple[int, ...] = ()
    """The reservation, in token order: first those shared with the prefix cache."""
    num_tokens: int = 0
    num_cached_blocks: int = 0
    """Leading blocks that are shared, hold KV already and are never written."""
    num_refetches: int = 0
    num_commits: int = 0
    expected_digest: int | None = None
    lost_at_s: float = 0.0
    _digest: int = 0
    _covered: list[int] = field(default_factory=list)
    """Per layer, one bit per token."""
    _claimed: list[int] = field(default_factory=list)
    """Like _covered, at the start of each write: a repeated segment is dropped at once."""
    _writes: set[Pin] = field(default_factory=set)

    def announce(self, num_tokens: int) -> bool:
        """The prefill has started and will send `num_tokens` tokens. False when late."""
        if not self._advance(SinkEvent.ANNOUNCE):
            return False
        self.num_tokens = num_tokens
        self._cover_cached()
        return True

    @property
    def num_missing_blocks(self) -> int:
        """Blocks to reserve before the whole prompt fits."""
        return max(0, self.layout.num_blocks(self.num_tokens) - len(self.block_ids))

    @property
    def can_reserve(self) -> bool:
        """Announced, and no writer of an earlier attempt still touches the blocks."""
        return self.state in (SinkState.RESERVING, SinkState.RECEIVING) and not self._writes

    @property
    def num_cached_tokens(self) -> int:
        """Leading tokens whose KV is here already: the source is told not to send them."""
        return min(self.num_tokens, self.num_cached_blocks * self.layout.block_size)

    def reserve(self, block_ids: Sequence[int], cached: Sequence[int] = ()) -> int:
        """Add INCOMING blocks to the reservation (perhaps none). Returns the credit in tokens.

        `cached` come before them, with the first blocks only: they hold the KV of the first tokens
        and are OWNED, by us as one more holder.
        """
        if not self.can_reserve and self.state is SinkState.RESERVING:
            raise StaleFence(f"{self.handoff_id}: a writer of an earlier attempt has not ended")
        if cached and self.block_ids:
            raise ValueError(f"{self.handoff_id}: cached blocks come before all others")
        if len(cached) * self.layout.block_size > self.num_tokens:
            # The next token's KV would be written into the last of them.
            raise ValueError(f"{self.handoff_id}: a cached block that the prompt does not fill")
        self._advance(SinkEvent.RESERVE)
        self.block_ids += (*cached, *block_ids)
        if cached:
            self.num_cached_blocks = len(cached)
            self._cover_cached()
        return min(self.num_tokens, len(self.block_ids) * self.layout.block_size)

    def _cover_cached(self) -> None:
        bits = (1 << self.num_cached_tokens) - 1
        self._covered = [bits] * self.layout.num_layers
        self._claimed = [bits] * self.layout.num_layers

    def begin_write(self, attempt: Fence, piece: KvRange) -> Write | None:
        """Claim one segment's place for a scatter. None: late, repeated or out of bounds."""
        if attempt != self.fence or not self._fits(piece):
            return None
        if not self._advance(SinkEvent.SEGMENT) or self._is_claimed(piece):
            return None
        _mark(self._claimed, piece)
        size = self.layout.block_size
        ids = self.block_ids[piece.tokens.start // size : self.layout.num_blocks(piece.tokens.stop)]
        pin = self.blocks.pin(ids)
        self._writes.add(pin)
        return Write(attempt, piece, ids, pin)

    def end_write(self, write: Write, digest: int | None) -> None:
        """The bytes are in their blocks; `digest` is of what was written. None: the copy failed or
        was given up, and the segment counts as never arrived."""
        self._writes.discard(write.pin)
        self.blocks.unpin(write.pin)
        if write.attempt != self.fence or self.state is not SinkState.RECEIVING:
            return
        if digest is None:
            # The place is free again for the segment when it comes once more.
            _clear(self._claimed, write.range)
        else:
            _mark(self._covered, write.range)
            self._digest = (self._digest + digest) & _MASK_64

    def corrupt(self, attempt: Fence) -> bool:
        """A segment failed its checksum. True: ask again; False: late, or the limit is reached."""
        if attempt != self.fence or not self._advance(SinkEvent.CORRUPT):
            return False
        self.num_refetches += 1
        return self.num_refetches <= self.max_refetches

    def end(self, attempt: Fence, digest: int) -> None:
        """The source has sent everything; its digest."""
        if attempt == self.fence and self._advance(SinkEvent.END):
            self.expected_digest = digest

    @property
    def is_whole(self) -> bool:
        """Every layer of every token is in its block and the source's digest is known."""
        full = (1 << self.num_tokens) - 1
        return (
            self.state is SinkState.RECEIVING
            and self.expected_digest is not None
            and not self._writes
            and all(bits == full for bits in self._covered)
        )

    def commit(self) -> bool:
        """Commit if whole and right. False: the digest is wrong and this prefill is lost."""
        if self._digest != self.expected_digest:
            self._advance(SinkEvent.DIGEST_WRONG)
            return False
        self._advance(SinkEvent.COMPLETE)
        self.num_commits += 1
        incoming = self.block_ids[self.num_cached_blocks :]
        self.blocks.move(incoming, BlockState.INCOMING, BlockState.OWNED)
        return True

    def adopt(self, block_ids: Sequence[int], num_tokens: int) -> None:
        """The prefill ran in this very instance: its OWNED blocks are this handoff's as they are.
        What an earlier attempt had reserved elsewhere is given back."""
        for event in (SinkEvent.ANNOUNCE, SinkEvent.RESERVE, SinkEvent.COMPLETE):
            self._advance(event)
        self._release_reserved()
        self.block_ids, self.num_tokens = tuple(block_ids), num_tokens
        self.num_commits += 1

    def hand_over(self) -> tuple[int, ...]:
        """The reserved blocks, in token order, to whoever owns them next; once."""
        held, self.block_ids = self.block_ids, ()
        return held

    def lose(self, attempt: Fence, now_s: float) -> bool:
        """This attempt's prefill cannot deliver. False when it does not matter any more."""
        if attempt != self.fence or not self._advance(SinkEvent.LOSE):
            return False
        self.lost_at_s = now_s
        return True

    def retarget(self, fence: Fence) -> None:
        """Another prefill will deliver. Raises StaleFence, or WrongState once committed."""
        if fence <= self.fence:
            raise StaleFence(f"{self.handoff_id}: {fence} is not above {self.fence}")
        self._advance(SinkEvent.RETARGET)
        self.fence = fence
        self.num_refetches = 0
        self.expected_digest = None
        self._digest = 0

    def stop(self) -> bool:
        """End it; blocks return as soon as their last writer has. False when it had ended."""
        return self._advance(SinkEvent.STOP) and self._give_back()

    def expire(self, now_s: float, retarget_wait_s: float) -> bool:
        """End a lost handoff that nobody retargets; whether it did."""
        if self.state is not SinkState.LOST or now_s < self.lost_at_s + retarget_wait_s:
            return False
        return self._advance(SinkEvent.EXPIRE) and self._give_back()

    @property
    def keeps_room(self) -> bool:
        """It has blocks of an earlier attempt, and no prefill that has started to fill them."""
        return bool(self.block_ids) and self.state in (SinkState.WAITING, SinkState.LOST)

    def yield_room(self) -> None:
        """Give the reservation back before anything of this attempt was received; blocks return as
        soon as their last writer has. It reserves anew, in its turn."""
        if not self.keeps_room and self.state is not SinkState.RESERVING:
            raise ValueError(f"{self.handoff_id}: {self.state} is no time to give up room")
        self._release_reserved()
        self._cover_cached()

    def _give_back(self) -> bool:
        if self.num_commits:
            self.blocks.release(self.hand_over(), BlockState.OWNED)
        else:
            self._release_reserved()
        return True

    def _release_reserved(self) -> None:
        num_cached, self.num_cached_blocks = self.num_cached_blocks, 0
        held = self.hand_over()
        self.blocks.release(held[num_cached:], BlockState.INCOMING)
        self.blocks.release(held[:num_cached], BlockState.OWNED)

    def _fits(self, piece: KvRange) -> bool:
        """Inside the model and inside the reservation; empty ranges are not."""
        layers, tokens = piece.layers, piece.tokens
        room = min(self.num_tokens, len(self.block_ids) * self.layout.block_size)
        return (
            0 <= layers.start < layers.stop <= self.layout.num_layers
            and 0 <= tokens.start < tokens.stop <= room
        )

    def _is_claimed(self, piece: KvRange) -> bool:
        bits = _bits(piece.tokens)
        return any(self._claimed[layer] & bits for layer in piece.layers)

    def _advance(self, event: SinkEvent) -> bool:
        state = SINK.advance(self.state, event)
        if state is None:
            return False
        self.state = state
        return True


def _bits(tokens: range) -> int:
    return ((1 << len(tokens)) - 1) << tokens.start


def _mark(masks: list[int], piece: KvRange) -> None:
    bits = _bits(piece.tokens)
    for layer in piece.layers:
        masks[layer] |= bits


def _clear(masks: list[int], piece: KvRange) -> None:
    bits = _bits(piece.tokens)
    for layer in piece.layers:
        masks[layer] &= ~bits
