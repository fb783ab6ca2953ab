"""A block allocator that also notices what its own books could not: blocks that threads touch."""

from collections.abc import Sequence

from core.blocks import BlockState
from engine.block_allocator import BlockAllocator, Keeper, Pin
from tests.simulation.checks import RuleBroken
from tests.simulation.content import LAYOUT, Memory


class WatchedAllocator(BlockAllocator):
    """`changed` is where it reports that its books have moved."""

    def __init__(
        self, num_blocks: int, changed: "set[WatchedAllocator]", keeper: Keeper | None = None
    ) -> None:
        super().__init__(num_blocks, LAYOUT.block_size, keeper)
        self.memory = Memory(num_blocks)
        self._changed = changed
        self._num_threads = [0] * num_blocks

    def touch(self, block_ids: Sequence[int]) -> None:
        """A thread begins to read or write."""
        for block_id in block_ids:
            self._num_threads[block_id] += 1

    def untouch(self, block_ids: Sequence[int]) -> None:
        """It has ended."""
        for block_id in block_ids:
            self._num_threads[block_id] -= 1

    def allocate(self, num_blocks: int, state: BlockState) -> tuple[int, ...]:
        """No block is handed out while a thread touches it."""
        block_ids = super().allocate(num_blocks, state)
        self._changed.add(self)
        if any(self._num_threads[i] for i in block_ids):
            raise RuleBroken(f"blocks {block_ids} handed out while one is read or written")
        self.memory.poison(block_ids)
        return block_ids

    def release(self, block_ids: Sequence[int], held_as: BlockState) -> None:
        """No block becomes free while a thread touches it."""
        num_free = self.num_free
        super().release(block_ids, held_as)
        self._changed.add(self)
        num_idle = sum(not self._num_threads[i] for i in block_ids)
        if self.num_free - num_free > num_idle:
            raise RuleBroken(f"blocks {tuple(block_ids)} freed while one is read or written")

    def share(self, block_ids: Sequence[int]) -> None:
        """Marked for the check."""
        super().share(block_ids)
        self._changed.add(self)

    def move(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None:
        """As above."""
        super().move(block_ids, source, target)
        self._changed.add(self)

    def pin(self, block_ids: Sequence[int]) -> Pin:
        """As above."""
        self._changed.add(self)
        return super().pin(block_ids)

    def unpin(self, pin: Pin) -> None:
        """As above."""
        self._changed.add(self)
        super().unpin(pin)
