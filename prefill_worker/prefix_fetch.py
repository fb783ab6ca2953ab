"""Prompts whose beginning another instance caches: fetched into our cache before they queue.

Whatever goes wrong, the prompt is computed: a fetch never fails a request, and delays it by a
bounded time only. What came is named and given up, so that the prompt finds it like any hit.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.blocks import BlockState
from core.clock import Clock
from core.config import HandoffConfig
from core.errors import Saturated
from core.kv_layout import KvLayout
from core.prefix import BlockHash
from core.work import KvLostReason, Peer, WorkRequest
from kv_transfer.errors import KvLost
from kv_transfer.result import FetchResult
from kv_transfer.sink import Sink
from prefill_worker.costs import Costs, is_fetch_cheaper
from rpc.status import our_error
from worker_host.blocks import InstanceBlocks

logger = logging.getLogger(__name__)

MAX_FETCHES = 8
"""At once; beyond, prompts are computed."""
MAX_DELAY_S = 1.0
"""Of a request whose fetch comes to nothing."""
PATIENCE = 2.0
"""A fetch may take so many times what computing would, and no longer."""
MIN_FREE_SHARE = 8
"""One in so many blocks stays free beside the whole prompt: others' growth comes first."""
AVOID_S = 10.0
"""A peer that could not be reached, or was too slow, is not asked again for so long."""
MAX_AVOIDED = 64
"""Peers remembered for that."""


class PrefixFetches(Protocol):
    """What fetches cached KV; see kv_transfer.fetch.Fetcher."""

    async def run_prefix(
        self,
        sink: Sink,
        peer: Peer,
        *,
        token_ids: Sequence[int],
        tenant: str,
        max_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult: ...


@dataclass(frozen=True, slots=True)
class CachedAt:
    """Who caches how much of a prompt, as far as the router knows."""

    peer: Peer
    num_tokens: int
    """From the first."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A fetch that is worth its while."""

    work: WorkRequest
    peer: Peer
    chain: Sequence[BlockHash]
    """Names of the prompt's beginning, as far as the peer caches it."""
    num_hits: int
    """Of its blocks, those that are here."""
    limit_s: float


@dataclass(slots=True, kw_only=True)
class PrefixFetch:
    """Owns the fetches of one instance; called on the event loop's thread."""

    fetches: PrefixFetches
    blocks: InstanceBlocks
    layout: KvLayout
    costs: Costs
    clock: Clock
    config: HandoffConfig
    own_address: str
    _in_flight: dict[BlockHash, asyncio.Event] = field(default_factory=dict)
    """By the first name that is fetched; set when it has ended."""
    _avoided: dict[str, float] = field(default_factory=dict)
    """Until when, by address."""

    @property
    def num_fetches(self) -> int:
        """Running now."""
        return len(self._in_flight)

    async def fetch(self, work: WorkRequest, cached_at: CachedAt) -> range:
        """Fetch what is worth it of its prompt. Returns the tokens whose KV came, and is in the
        prefix cache now; perhaps none. The caller may cancel."""
        if (wanted := self._wanted(work, cached_at)) is None:
            return range(0)
        name = wanted.chain[wanted.num_hits]
        if (earlier := self._in_flight.get(name)) is not None:
            await self._await(earlier, wanted.limit_s)
            return range(0)
        if self.num_fetches >= MAX_FETCHES:
            return range(0)
        ended = self._in_flight[name] = asyncio.Event()
        try:
            return await self._try(wanted)
        finally:
            del self._in_flight[name]
            ended.set()

    # --- whether ----------------------------------------------------------------------------

    def _wanted(self, work: WorkRequest, cached_at: CachedAt) -> _Wanted | None:
        size, peer = self.blocks.block_size, cached_at.peer
        if peer.address == self.own_address or self._is_avoided(peer):
            return None
        num_tokens = min(cached_at.num_tokens, work.num_input_tokens) // size * size
        chain = self.blocks.names(work.tenant, work.input_token_ids[:num_tokens])
        num_hits = self.blocks.hits(chain).num_blocks
        num_new = (len(chain) - num_hits) * size
        if num_new <= 0 or not self._has_room(work, chain):
            return None
        num_bytes = num_new * self.layout.bytes_per_token
        if not is_fetch_cheaper(self.costs, num_tokens=num_new, num_bytes=num_bytes):
            self.costs.not_fetched()
            return None
        return _Wanted(work, peer, chain, num_hits, self._limit_s(num_new))

    def _has_room(self, work: WorkRequest, chain: Sequence[BlockHash]) -> bool:
        """The whole prompt has, so that nothing is evicted that computing it would not."""
        if self.blocks.has_waiting_answers:
            return False
        hits = self.blocks.hits(chain)
        num_fresh = self.blocks.blocks_for(work.num_input_tokens) - hits.num_blocks
        spare = self.blocks.num_blocks // MIN_FREE_SHARE
        return num_fresh + spare <= hits.num_free_after

    def _limit_s(self, num_tokens: int) -> float:
        # Decode's own Fetch may wait for this prefill to be accepted.
        most_s = min(MAX_DELAY_S, self.config.unknown_handoff_wait_s / 2)
        return min(most_s, PATIENCE * self.costs.compute_s(num_tokens))

    # --- how --------------------------------------------------------------------------------

    async def _await(self, earlier: asyncio.Event, limit_s: float) -> None:
        """Another prompt's fetch brings what this one wants: its hits, or it computes."""
        try:
            async with asyncio.timeout(limit_s):
                await earlier.wait()
        except TimeoutError:
            logger.info("prefix not awaited any longer, after %s s", limit_s)

    async def _try(self, wanted: _Wanted) -> range:
        work = wanted.work
        sink = Sink(
            handoff_id=work.handoff_id,
            layout=self.layout,
            blocks=self.blocks,
            fence=work.fence,
            max_refetches=self.config.max_refetches,
        )
        try:
            return await self._run(wanted, sink)
        except Exception as error:  # noqa: BLE001 - the prompt can be computed, whatever it was
            self._failed(wanted, error)
            return range(0)
        finally:
            # Gives back what it has: nothing, once it was named.
            sink.stop()

    async def _run(self, wanted: _Wanted, sink: Sink) -> range:
        work, began_at_s = wanted.work, self.clock.now_s()
        async with asyncio.timeout(wanted.limit_s):
            result = await self.fetches.run_prefix(
                sink,
                wanted.peer,
                token_ids=work.input_token_ids,
                tenant=work.tenant,
                max_tokens=len(wanted.chain) * self.blocks.block_size,
                reserve=lambda sink: self._reserve(sink, wanted),
            )
        size = self.blocks.block_size
        fetched = range(sink.num_cached_tokens, sink.num_tokens // size * size)
        self._keep(sink, wanted.chain)
        self.costs.fetched(result.timing.num_kv_bytes, self.clock.now_s() - began_at_s)
        logger.info("prefix fetched handoff_id=%s tokens=%d", work.handoff_id, len(fetched))
        return fetched

    async def _reserve(self, sink: Sink, wanted: _Wanted) -> None:
        """Room for what the peer announced, or none at all: nobody waits here."""
        chain = wanted.chain[: sink.num_tokens // self.blocks.block_size]
        hits = self.blocks.hits(chain)
        if hits.num_blocks >= len(chain):
            raise Saturated(f"{sink.num_tokens} tokens are cached there, here as many")
        if not self._has_room(wanted.work, chain):
            raise Saturated(f"{self.blocks.num_free} KV blocks are free: too few to fetch into")
        # First, so that the allocation does not evict them.
        shared = self.blocks.share(chain)
        num_fresh = sink.num_missing_blocks - len(shared)
        sink.reserve(self.blocks.allocate(num_fresh, BlockState.INCOMING), shared)

    def _keep(self, sink: Sink, chain: Sequence[BlockHash]) -> None:
        """Committed: cached from now on, like any prompt that has ended."""
        block_ids = sink.hand_over()
        self.blocks.name(chain, block_ids[: sink.num_tokens // self.blocks.block_size])
        self.blocks.release(block_ids, BlockState.OWNED)

    # --- whom not ---------------------------------------------------------------------------

    def _failed(self, wanted: _Wanted, error: Exception) -> None:
        is_late = isinstance(error, TimeoutError)
        said = f"not here in {wanted.limit_s:.3f} s" if is_late else our_error(error)
        logger.info(
            "prefix not fetched handoff_id=%s from=%s: %s",
            *(wanted.work.handoff_id, wanted.peer.instance_id, said),
        )
        if is_late or (isinstance(error, KvLost) and error.why is not KvLostReason.LEASE):
            self._avoid(wanted.peer)

    def _avoid(self, peer: Peer) -> None:
        self._avoided[peer.address] = self.clock.now_s() + AVOID_S
        while len(self._avoided) > MAX_AVOIDED:
            del self._avoided[next(iter(self._avoided))]

    def _is_avoided(self, peer: Peer) -> bool:
        return self.clock.now_s() < self._avoided.get(peer.address, 0.0)
