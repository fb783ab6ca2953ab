"""Who uses which KV block: the bookkeeping of one instance's cache, without the tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.blocks import BlockState
from core.errors import BatonError, IllegalTransition, Saturated

ALLOCATABLE = frozenset({BlockState.OWNED, BlockState.INCOMING})
MOVES = frozenset(
    {
        (BlockState.OWNED, BlockState.LEASED),
        (BlockState.INCOMING, BlockState.OWNED),
        (BlockState.LEASED, BlockState.OWNED),  # a local handoff copies nothing
    }
)
USED = frozenset({BlockState.OWNED, BlockState.LEASED, BlockState.INCOMING})
"""What can be released or pinned. A quarantined block takes no new reader."""


class OutOfBlocks(Saturated):
    """Fewer blocks are free than asked for; none was taken."""


class IntegrityError(BatonError, AssertionError):
    """The allocator's books contradict themselves: a bug of ours."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One reader or writer (thread, stream, remote peer) of some blocks."""

    pin_id: int
    block_ids: tuple[int, ...]


class BlockAllocator:
    """Hands out block ids from 0 to num_blocks - 1; every call but `check` is O(blocks named).

    Not thread-safe: one event loop owns it, and tells it when threads begin and end.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need blocks and room in them, got {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._states = [BlockState.FREE] * num_blocks
        self._generations = [0] * num_blocks
        self._num_pins = [0] * num_blocks
        # A stack, lowest id on top: what is freed together is handed out together, in order,
        # which keeps block tables contiguous and copies coalesced.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._counts = dict.fromkeys(BlockState, 0) | {BlockState.FREE: num_blocks}
        self._pins: dict[int, Pin] = {}
        self._next_pin_id = 0

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int, state: BlockState) -> tuple[int, ...]:
        """Take `num_blocks` free blocks into `state` (OWNED or INCOMING), all or none."""
        if state not in ALLOCATABLE:
            raise IllegalTransition(f"blocks are not allocated as {state}")
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        if num_blocks > len(self._free):
            raise OutOfBlocks(
                f"{num_blocks} KV blocks asked for, {len(self._free)} free of {self.num_blocks}"
            )
        if num_blocks == 0:
            return ()
        block_ids = tuple(reversed(self._free[-num_blocks:]))
        del self._free[-num_blocks:]
        self._set(block_ids, BlockState.FREE, state)
        return block_ids

    def move(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None:
        """Change the state of blocks that are all in `source`; all or none."""
        if (source, target) not in MOVES:
            raise IllegalTransition(f"a block does not move from {source} to {target}")
        self._require(block_ids, frozenset({source}), f"move to {target}")
        self._set(block_ids, source, target)

    def release(self, block_ids: Sequence[int]) -> None:
        """Give blocks up: FREE at once, or QUARANTINED until their last pin ends."""
        self._require(block_ids, USED, "release")
        # Reversed: the stack then hands them out again in the order given.
        for block_id in reversed(block_ids):
            self._generations[block_id] += 1
            if self._num_pins[block_id]:
                self._set((block_id,), self._states[block_id], BlockState.QUARANTINED)
            else:
                self._free_one(block_id)

    def pin(self, block_ids: Sequence[int]) -> Pin:
        """Register a reader or writer: until `unpin`, none of the blocks gets a new owner."""
        self._require(block_ids, USED, "pin")
        pin = Pin(self._next_pin_id, tuple(block_ids))
        self._next_pin_id += 1
        self._pins[pin.pin_id] = pin
        for block_id in block_ids:
            self._num_pins[block_id] += 1
        return pin

    def unpin(self, pin: Pin) -> None:
        """End a reader or writer; does nothing the second time."""
        if self._pins.pop(pin.pin_id, None) is None:
            return
        for block_id in reversed(pin.block_ids):
            self._num_pins[block_id] -= 1
            quarantined = self._states[block_id] is BlockState.QUARANTINED
            if quarantined and not self._num_pins[block_id]:
                self._free_one(block_id)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """How often each block was released: unchanged around a read, it was ours throughout."""
        return tuple([self._generations[block_id] for block_id in block_ids])

    def counts(self) -> dict[BlockState, int]:
        """Blocks in every state."""
        return dict(self._counts)

    def check(self) -> None:
        """Compare all books with each other; O(all blocks).

        Raises:
            IntegrityError: naming every contradiction.
        """
        problems = [*self._state_problems(), *self._pin_problems()]
        if problems:
            raise IntegrityError("; ".join(problems))

    def _free_one(self, block_id: int) -> None:
        self._set((block_id,), self._states[block_id], BlockState.FREE)
        self._free.append(block_id)

    def _set(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None:
        for block_id in block_ids:
            self._states[block_id] = target
        self._counts[source] -= len(block_ids)
        self._counts[target] += len(block_ids)

    def _require(
        self, block_ids: Sequence[int], allowed: frozenset[BlockState], action: str
    ) -> None:
        if len(set(block_ids)) != len(block_ids):
            raise IllegalTransition(f"cannot {action}: a block is named twice in {block_ids!r}")
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks:
                raise IllegalTransition(
                    f"cannot {action}: no block {block_id}, there are {self.num_blocks}"
                )
            if self._states[block_id] not in allowed:
                raise IllegalTransition(
                    f"cannot {action}: block {block_id} is {self._states[block_id]}, "
                    f"not {' or '.join(sorted(allowed))}"
                )

    def _state_problems(self) -> list[str]:
        actual = dict.fromkeys(BlockState, 0)
        for state in self._states:
            actual[state] += 1
        problems = [
            f"{self._counts[state]} blocks counted as {state}, {n} are"
            for state, n in actual.items()
            if n != self._counts[state]
        ]
        free_ids = {i for i, state in enumerate(self._states) if state is BlockState.FREE}
        if sorted(self._free) != sorted(free_ids):
            problems.append(f"free list {sorted(self._free)} but free blocks {sorted(free_ids)}")
        return problems

    def _pin_problems(self) -> list[str]:
        actual = [0] * self.num_blocks
        for pin in self._pins.values():
            for block_id in pin.block_ids:
                actual[block_id] += 1
        problems = []
        for block_id, (state, num_pins) in enumerate(zip(self._states, actual, strict=True)):
            if num_pins != self._num_pins[block_id]:
                problems.append(
                    f"block {block_id}: {self._num_pins[block_id]} pins counted, {num_pins} live"
                )
            if num_pins and state is BlockState.FREE:
                problems.append(f"block {block_id} is free while pinned")
            if not num_pins and state is BlockState.QUARANTINED:
                problems.append(f"block {block_id} is quarantined without a pin")
        return problems
