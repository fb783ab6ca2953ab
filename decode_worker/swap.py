"""Answers that had to make room: their KV goes to host memory and comes back, beside the steps.

Why an answer always comes back. While answers run, every step brings at least one nearer to its
last token, or the next one waits for a copy, or for handoffs that have their room already: copies
end, and such handoffs commit, run and end too, or are lost within a bounded time. None but running
answers grow, and no other handoff gets room while somebody waits here, so what is freed stays free.
What else holds blocks are prompts being computed and leases. These end by themselves, but for one
case: prompts of this instance, leased to handoffs of this instance that wait for room. So those get
room again when nothing runs (`DecodePhase.is_short`), and the last answer makes room too when it
waits for just their blocks (`DecodePhase.is_stuck`). In the end all blocks are free, and
`_num_wanted` never asks for more than all.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

from core.blocks import BlockState
from core.errors import BatonError
from core.kv_layout import cut_tokens
from core.tables import Ruling, Table
from decode_worker.job import Answer
from decode_worker.parts import DecodeParts
from kv_transfer.copies import run_to_end
from policy.fairness import FairQueue, ServedTokens
from rpc.status import our_error
from worker_host.blocks import MAX_GROWTH_RESERVE

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024 * 1024
"""Of one copy: large enough for full speed, and on a device, where each takes as much again for a
moment, small beside what makes an answer leave."""


class SwapState(StrEnum):
    """Where the KV of an answer is that does not take part in steps."""

    LEAVING = "leaving"
    """In its blocks, which a copy thread reads or will read."""
    OUT = "out"
    """In host memory; its blocks are others'."""
    RETURNING = "returning"
    """In host memory; it has blocks again, which a copy thread writes or will write."""
    ENDED = "ended"
    """In its blocks again, or wanted no more."""


class SwapEvent(StrEnum):
    """What can happen to it."""

    COPIED = "copied"
    ROOM = "room"
    END = "end"


_BUG, _DROP, _X = Ruling.BUG, Ruling.DROP, SwapState.ENDED
_L, _O, _R = SwapState.LEAVING, SwapState.OUT, SwapState.RETURNING
_COPIED, _ROOM, _END = SwapEvent.COPIED, SwapEvent.ROOM, SwapEvent.END

SWAP: Table[SwapState, SwapEvent] = Table(
    "swap",
    SwapState,
    SwapEvent,
    {
        _L: {_COPIED: _O, _ROOM: _BUG, _END: _X},
        _O: {_COPIED: _BUG, _ROOM: _R, _END: _X},
        _R: {_COPIED: _X, _ROOM: _BUG, _END: _X},
        # The copy of an answer that was ended meanwhile.
        _X: {_COPIED: _DROP, _ROOM: _BUG, _END: _DROP},
    },
)


class Batch(Protocol):
    """Who is told what became of an answer outside the batch."""

    def returned(self, answer: Answer) -> None:
        """Its KV is in blocks of its own again."""
        ...

    def lost(self, answer: Answer, error: BatonError) -> None:
        """Its KV could not be copied; it must be ended now."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Parcel:
    """One answer's KV outside the batch, until nothing is left of it here."""

    answer: Answer
    num_blocks: int
    """That it fills, there and in host memory."""
    num_coming: int
    """Of them, those that nobody else holds: they are free once it is out."""
    state: SwapState = SwapState.LEAVING
    pieces: Sequence[memoryview] | None = None
    is_copying: bool = False


class Swap:
    """Host memory, bounded, and the one copy at a time that fills or empties it."""

    def __init__(self, parts: DecodeParts, served: ServedTokens, batch: Batch) -> None:
        self._blocks = parts.blocks
        self._store = parts.store
        self._copies = parts.copies
        self._layout = parts.layout
        self._layers = range(parts.layout.num_layers)
        self._max_blocks = parts.num_swap_blocks
        self._work = parts.work
        self._batch = batch
        self._num_blocks = 0
        self._parcels: dict[Answer, Parcel] = {}
        self._out: FairQueue[Answer] = FairQueue(ageing_s=parts.worker.ageing_s, served=served)
        self._due: asyncio.Queue[Parcel] = asyncio.Queue()
        self.num_taken_out = 0
        """Since the start."""
        self.num_brought_back = 0

    async def run(self) -> None:
        """Copy until cancelled. One at a time: the other copy thread stays with the handoffs."""
        while True:
            parcel = await self._due.get()
            if parcel.state is not SwapState.ENDED:
                await self._copy(parcel)

    @property
    def num_parcels(self) -> int:
        """Answers here, and those that have ended under a running copy."""
        return len(self._parcels)

    @property
    def num_waiting(self) -> int:
        """Answers that have given up their blocks, or are about to."""
        return self._count(SwapState.LEAVING, SwapState.OUT)

    @property
    def num_returning(self) -> int:
        """Answers that have blocks again."""
        return self._count(SwapState.RETURNING)

    @property
    def num_coming(self) -> int:
        """Blocks that copies under way will free."""
        return sum(parcel.num_coming for parcel in self._parcels.values())

    def fits(self, answer: Answer) -> bool:
        """Whether there is host memory for it."""
        return self._num_blocks + len(answer.held_block_ids) <= self._max_blocks

    def take_out(self, answer: Answer) -> None:
        """Make room of its blocks; no step may use them any more."""
        held = answer.held_block_ids
        num_coming = sum(self._blocks.allocator.num_holders(block_id) == 1 for block_id in held)
        parcel = Parcel(answer=answer, num_blocks=len(held), num_coming=num_coming)
        self._parcels[answer] = parcel
        self._count_memory(len(held))
        self._due.put_nowait(parcel)
        logger.info("swapping out handoff_id=%s blocks=%d", answer.work.handoff_id, len(held))

    def bring_back(self, now_s: float, *, num_running: int, num_places: int) -> None:
        """Give blocks to those whose turn it is, while there is room beside running growth."""
        num_running += self.num_returning
        num_places -= self.num_returning
        for answer in self._out.in_turn(now_s):
            parcel = self._parcels[answer]
            num_wanted = self._num_wanted(parcel.num_blocks, num_running)
            if num_places <= 0 or num_wanted > self._blocks.num_free:
                return
            self._bring(parcel)
            num_running += 1
            num_places -= 1

    def leave(self, answer: Answer) -> None:
        """It has ended: its host memory returns, at the latest with the copy under way."""
        parcel = self._parcels.get(answer)
        if parcel is None:
            return
        parcel.state = SWAP.advance(parcel.state, SwapEvent.END) or parcel.state
        self._out.remove(answer)
        if not parcel.is_copying:
            self._forget(parcel)

    def _num_wanted(self, num_blocks: int, num_running: int) -> int:
        # Its next block, and the next of everybody else who runs: it shall not leave again at
        # once. More than all there are would never come.
        floor = min(num_running, MAX_GROWTH_RESERVE)
        return min(num_blocks + floor + 1, self._blocks.num_blocks)

    def _bring(self, parcel: Parcel) -> None:
        self._advance(parcel, SwapEvent.ROOM)
        self._out.remove(parcel.answer)
        parcel.answer.take_blocks(self._blocks.allocate(parcel.num_blocks, BlockState.OWNED))
        self._due.put_nowait(parcel)

    async def _copy(self, parcel: Parcel) -> None:
        try:
            await self._run_copy(parcel)
        except Exception as error:  # noqa: BLE001 - the edge of one answer: others' KV is sound
            if parcel.state is not SwapState.ENDED:
                self._batch.lost(parcel.answer, our_error(error))
        else:
            self._copied(parcel)
        if parcel.state is SwapState.ENDED:
            self._forget(parcel)
        self._work.set()

    async def _run_copy(self, parcel: Parcel) -> None:
        # Whoever ends the answer gives its blocks up at once: pinned, they go to nobody else.
        pin = self._blocks.pin(parcel.answer.held_block_ids)
        parcel.is_copying = True
        try:
            parcel.pieces = await run_to_end(self._copies, self._copy_of(parcel))
        finally:
            parcel.is_copying = False
            self._blocks.unpin(pin)

    def _copy_of(self, parcel: Parcel) -> Callable[[], Sequence[memoryview] | None]:
        """What a thread does. It is given a block table of its own."""
        answer = parcel.answer
        block_ids, tokens = tuple(answer.block_ids), range(answer.kv_start, answer.num_kv_tokens)
        if parcel.pieces is None:
            return partial(self._gather, block_ids, tokens)
        return partial(self._scatter, block_ids, tokens, parcel.pieces)

    def _gather(self, block_ids: tuple[int, ...], tokens: range) -> Sequence[memoryview]:
        return [
            self._store.gather(self._layers, block_ids, cut)
            for cut in cut_tokens(tokens, self._layers, self._layout, PIECE_BYTES)
        ]

    def _scatter(
        self, block_ids: tuple[int, ...], tokens: range, pieces: Sequence[memoryview]
    ) -> None:
        cuts = cut_tokens(tokens, self._layers, self._layout, PIECE_BYTES)
        for cut, piece in zip(cuts, pieces, strict=True):
            self._store.scatter(self._layers, block_ids, cut, piece)

    def _copied(self, parcel: Parcel) -> None:
        answer, is_leaving = parcel.answer, parcel.state is SwapState.LEAVING
        if not self._advance(parcel, SwapEvent.COPIED):
            return
        if is_leaving:
            parcel.num_coming = 0
            self._blocks.release(answer.give_up_blocks(), BlockState.OWNED)
            self._out.add(answer, answer.claim)
            self.num_taken_out += 1
        else:
            self.num_brought_back += 1
            self._forget(parcel)
            self._batch.returned(answer)
            logger.info("swapped in handoff_id=%s", answer.work.handoff_id)

    def _advance(self, parcel: Parcel, event: SwapEvent) -> bool:
        state = SWAP.advance(parcel.state, event)
        if state is None:
            return False
        parcel.state = state
        return True

    def _forget(self, parcel: Parcel) -> None:
        """Nothing of it is here any more; once."""
        if self._parcels.get(parcel.answer) is parcel:
            del self._parcels[parcel.answer]
            self._count_memory(-parcel.num_blocks)

    def _count_memory(self, change: int) -> None:
        self._num_blocks += change
        self._blocks.allocator.count_swapped(change)

    def _count(self, *states: SwapState) -> int:
        return sum(parcel.state in states for parcel in self._parcels.values())
