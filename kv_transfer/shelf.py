"""Cached KV that other instances may read: loans out of this instance's prefix cache."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from core.blocks import BlockState
from core.clock import Clock
from core.errors import Saturated, UnknownRequest
from core.ids import HandoffId
from core.prefix import BlockHash
from core.request import Fence
from kv_transfer.book import SourceBook
from kv_transfer.source import FirstToken, Outcome, Source

logger = logging.getLogger(__name__)

MAX_LOANS = 32
"""At once; each holds a stream, and blocks that could be evicted otherwise."""
MIN_FREE_SHARE = 8
"""One in so many blocks stays free: what is lent cannot be evicted for a running answer."""


class Cached(Protocol):
    """The beginning of a chain that `share` would find."""

    @property
    def num_blocks(self) -> int: ...
    @property
    def num_free_after(self) -> int: ...


class CachedBlocks(Protocol):
    """What a shelf needs of its instance's blocks; see worker_host.blocks.InstanceBlocks."""

    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def has_waiting_answers(self) -> bool: ...

    def names(
        self, tenant: str, token_ids: Sequence[int], chain: Sequence[BlockHash] = ()
    ) -> list[BlockHash]: ...
    def hits(self, chain: Sequence[BlockHash]) -> Cached: ...
    def share(self, chain: Sequence[BlockHash]) -> tuple[int, ...]: ...
    def release(self, block_ids: Sequence[int], held_as: BlockState) -> None: ...


class Shelf:
    """Makes leased Sources of cached prefixes; each lives as long as the stream that reads it."""

    def __init__(self, book: SourceBook, blocks: CachedBlocks, clock: Clock) -> None:
        self._book = book
        self._blocks = blocks
        self._clock = clock
        self._num_loans = 0

    @property
    def num_loans(self) -> int:
        """Prefixes being read."""
        return self._num_loans

    @contextmanager
    def lend(
        self,
        handoff_id: HandoffId,
        fence: Fence,
        *,
        token_ids: Sequence[int],
        tenant: str,
        max_tokens: int,
    ) -> Iterator[Source]:
        """The longest cached beginning of `token_ids`, in full blocks and no longer than
        `max_tokens`, until the block ends; read it with `book.reading(handoff_id, fence)`.

        Its names are made here: a peer that knows no tokens finds nothing. The first token of its
        end stands for none: token 0 at position 0.

        Raises UnknownRequest when nothing is cached, Saturated when no more can be lent now,
        StaleFence and WrongState as `book.accept` does.
        """
        chain = self._chain(token_ids, tenant, max_tokens)
        self._num_loans += 1
        try:
            source = self._put(handoff_id, fence, chain)
            try:
                yield source
            finally:
                # No lease time: nobody else reads it. Nothing happens when it was released.
                self._book.end(source, Outcome.ABORTED)
        finally:
            self._num_loans -= 1

    def _chain(self, token_ids: Sequence[int], tenant: str, max_tokens: int) -> list[BlockHash]:
        """Names of all that can be lent."""
        chain = self._blocks.names(tenant, token_ids[:max_tokens])
        hits = self._blocks.hits(chain)
        if not hits.num_blocks:
            raise UnknownRequest("nothing of this prompt is cached here")
        if self._blocks.has_waiting_answers:
            raise Saturated("answers wait for KV blocks here: none is lent")
        if hits.num_free_after < self._blocks.num_blocks // MIN_FREE_SHARE:
            raise Saturated(f"{hits.num_free_after} KV blocks would stay free: too few to lend")
        if self._num_loans >= MAX_LOANS:
            raise Saturated(f"{MAX_LOANS} cached prefixes are being read already")
        return chain[: hits.num_blocks]

    def _put(self, handoff_id: HandoffId, fence: Fence, chain: Sequence[BlockHash]) -> Source:
        source = self._book.accept(handoff_id, fence, on_ended=_ended)
        block_ids = self._blocks.share(chain)
        num_tokens = len(block_ids) * self._blocks.block_size
        token = FirstToken(
            token_id=0, position=0, finish_reason=None, sampled_at_s=self._clock.now_s()
        )
        is_on = self._book.started(source, block_ids, num_tokens)
        assert is_on, "it was accepted just now"
        self._book.finished(source, token)
        logger.info("prefix lent handoff_id=%s tokens=%d", handoff_id, num_tokens)
        return source


def _ended(source: Source) -> None:
    logger.info("prefix read handoff_id=%s outcome=%s", source.handoff_id, source.outcome)
