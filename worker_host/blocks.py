"""The instance's blocks and prefix cache, with word to whoever waits for room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from core.blocks import BlockState
from core.prefix import BlockHash, PrefixHasher
from engine.block_allocator import BlockAllocator, Pin
from engine.prefix_cache import PrefixCache

MAX_GROWTH_RESERVE = 64
"""Blocks kept for running requests: at most this many cross into a new block at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """The cached beginning of a chain."""

    num_blocks: int
    num_free_after: int
    """Free blocks once these are shared: cached ones count as free before."""


class InstanceBlocks:
    """The allocator as every part of an instance sees it; owned by the event loop."""

    def __init__(
        self,
        allocator: BlockAllocator,
        cache: PrefixCache | None = None,
        hasher: PrefixHasher | None = None,
    ) -> None:
        """`cache` is the allocator's keeper; without `hasher` nothing has a name."""
        self.allocator = allocator
        # Not `or`: an empty cache is false.
        self.has_waiting_answers = False
        """Answers in host memory wait for room: they come before new prompts."""
        self.cache = PrefixCache() if cache is None else cache
        self._hasher = hasher
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def cached(cls, num_blocks: int, block_size: int, key: bytes) -> "InstanceBlocks":
        """With a prefix cache whose names are made with the cluster's `key`."""
        cache = PrefixCache()
        allocator = BlockAllocator(num_blocks, block_size, cache)
        return cls(allocator, cache, PrefixHasher(key, block_size))

    def on_freed(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever blocks became free; it must only note that, and act later."""
        self._listeners.append(listener)

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.allocator.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self.allocator.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that could be allocated now."""
        return self.allocator.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return self.allocator.blocks_for(num_tokens)

    def allocate(self, num_blocks: int, state: BlockState) -> tuple[int, ...]:
        """Take free blocks, all or none; raises OutOfBlocks."""
        return self.allocator.allocate(num_blocks, state)

    def move(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None:
        """Change the state of blocks that are all in `source`."""
        self.allocator.move(block_ids, source, target)

    def release(self, block_ids: Sequence[int], held_as: BlockState) -> None:
        """Give blocks up, at once or when their last pin ends."""
        num_free = self.num_free
        self.allocator.release(block_ids, held_as)
        self._tell_if_more_than(num_free)

    def names(
        self, tenant: str, token_ids: Sequence[int], chain: Sequence[BlockHash] = ()
    ) -> list[BlockHash]:
        """Of the full blocks of `token_ids` after those of `chain`; none without a prefix cache."""
        return [] if self._hasher is None else self._hasher.extend(tenant, chain, token_ids)

    def hits(self, chain: Sequence[BlockHash]) -> "Hits":
        """What `share` would find, and what it would leave."""
        block_ids = self._hits(chain)
        num_cached = sum(not self.allocator.num_holders(block_id) for block_id in block_ids)
        return Hits(num_blocks=len(block_ids), num_free_after=self.num_free - num_cached)

    def share(self, chain: Sequence[BlockHash]) -> tuple[int, ...]:
        """The blocks of the longest cached beginning of `chain`, OWNED by one more holder."""
        block_ids = self._hits(chain)
        self.allocator.share(block_ids)
        return block_ids

    def name(self, chain: Sequence[BlockHash], block_ids: Sequence[int]) -> None:
        """The first of these blocks are full and computed, one for each name of the chain."""
        self.cache.insert(chain, block_ids)

    def _hits(self, chain: Sequence[BlockHash]) -> tuple[int, ...]:
        return tuple(takewhile(self.allocator.is_shareable, self.cache.find(chain)))

    def pin(self, block_ids: Sequence[int]) -> Pin:
        """Register a reader or writer."""
        return self.allocator.pin(block_ids)

    def unpin(self, pin: Pin) -> None:
        """End a reader or writer."""
        num_free = self.num_free
        self.allocator.unpin(pin)
        self._tell_if_more_than(num_free)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """How often each block was released."""
        return self.allocator.generations(block_ids)

    def _tell_if_more_than(self, num_free: int) -> None:
        if self.num_free > num_free:
            for listener in self._listeners:
                listener()
