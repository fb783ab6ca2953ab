"""The instance's block allocator, with word to whoever waits for room."""

from collections.abc import Callable, Sequence

from core.blocks import BlockState
from engine.block_allocator import BlockAllocator, Pin

MAX_GROWTH_RESERVE = 64
"""Blocks kept for running requests: at most this many cross into a new block at the same time."""


class InstanceBlocks:
    """The allocator as every part of an instance sees it; owned by the event loop."""

    def __init__(self, allocator: BlockAllocator) -> None:
        self.allocator = allocator
        self._listeners: list[Callable[[], None]] = []

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

    def release(self, block_ids: Sequence[int]) -> None:
        """Give blocks up, at once or when their last pin ends."""
        num_free = self.num_free
        self.allocator.release(block_ids)
        self._tell_if_more_than(num_free)

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
