"""Who uses which KV block: the bookkeeping of one instance's cache, without the tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
HELD = (BlockState.INCOMING, BlockState.OWNED, BlockState.LEASED)
"""As what a holder has a block. With several it is in the first of these that any has it as."""
USED = frozenset(HELD)
"""What can be pinned. A quarantined block takes no new reader."""
SHAREABLE = frozenset({BlockState.OWNED, BlockState.LEASED, BlockState.CACHED})
"""What can get one more holder."""


class Keeper(Protocol):
    """Who knows what is worth keeping in blocks that nobody holds; see engine.prefix_cache."""

    def keeps(self, block_id: int) -> bool:
        """Whether the block's content has a name."""
        ...

    def forget(self, block_id: int) -> None:
        """Its content is about to be overwritten."""
        ...


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

    A block may have several holders: requests with the same prefix. When the last one gives it up
    and `keeper` knows its content, it is CACHED until somebody needs the room: the one that was
    given up longest ago goes first.

    Not thread-safe: one event loop owns it, and tells it when threads begin and end.
    """

    def __init__(self, num_blocks: int, block_size: int, keeper: Keeper | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need blocks and room in them, got {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._keeper = keeper
        self._states = [BlockState.FREE] * num_blocks
        self._num_holders = {state: [0] * num_blocks for state in HELD}
        self._generations = [0] * num_blocks
        self._num_pins = [0] * num_blocks
        # A stack, lowest id on top: what is freed together is handed out together, in order,
        # which keeps block tables contiguous and copies coalesced.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}
        """In the order in which they were given up."""
        self._counts = dict.fromkeys(BlockState, 0) | {BlockState.FREE: num_blocks}
        self._pins: dict[int, Pin] = {}
        self._next_pin_id = 0

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Of them, those that hold a prefix."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int, state: BlockState) -> tuple[int, ...]:
        """Take `num_blocks` free blocks into `state` (OWNED or INCOMING), all or none."""
        if state not in ALLOCATABLE:
            raise IllegalTransition(f"blocks are not allocated as {state}")
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        if num_blocks > self.num_free:
            raise OutOfBlocks(
                f"{num_blocks} KV blocks asked for, {self.num_free} free of {self.num_blocks}"
            )
        self._evict(num_blocks - len(self._free))
        block_ids = tuple(reversed(self._free[len(self._free) - num_blocks :]))
        del self._free[len(self._free) - num_blocks :]
        for block_id in block_ids:
            self._num_holders[state][block_id] = 1
            self._set(block_id, state)
        return block_ids

    def share(self, block_ids: Sequence[int]) -> None:
        """One more OWNED holder of blocks whose content is to be read; all or none."""
        self._require(block_ids, SHAREABLE, "share")
        for block_id in block_ids:
            self._cached.pop(block_id, None)
            self._num_holders[BlockState.OWNED][block_id] += 1
            self._settle(block_id)

    def is_shareable(self, block_id: int) -> bool:
        """Whether `share` would take it."""
        return self._states[block_id] in SHAREABLE

    def move(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None:
        """A holder of blocks as `source` has them as `target` from now on; all or none."""
        if (source, target) not in MOVES:
            raise IllegalTransition(f"a block does not move from {source} to {target}")
        self._require_held(block_ids, source, f"move to {target}")
        for block_id in block_ids:
            self._num_holders[source][block_id] -= 1
            self._num_holders[target][block_id] += 1
            self._settle(block_id)

    def release(self, block_ids: Sequence[int], held_as: BlockState) -> None:
        """A holder gives blocks up. With the last one they are CACHED or FREE at once, or
        QUARANTINED until their last pin ends."""
        self._require_held(block_ids, held_as, "release")
        # Reversed: the stack then hands them out again in the order given, and the cache forgets
        # the end of a prefix before its beginning.
        for block_id in reversed(block_ids):
            self._num_holders[held_as][block_id] -= 1
            self._settle(block_id)

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
            if self._states[block_id] is BlockState.QUARANTINED and not self._num_pins[block_id]:
                self._give_back(block_id)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """How often each block lost its last holder: unchanged around a read, it was held
        throughout."""
        return tuple([self._generations[block_id] for block_id in block_ids])

    def num_holders(self, block_id: int) -> int:
        """How many have it."""
        return sum(self._num_holders[state][block_id] for state in HELD)

    def count_swapped(self, change: int) -> None:
        """So many blocks' worth of KV went to host memory; below 0: came back or was dropped."""
        self._counts[BlockState.SWAPPED] += change

    def counts(self) -> dict[BlockState, int]:
        """Blocks in every state; the swapped ones are in host memory, beyond `num_blocks`."""
        return dict(self._counts)

    def check(self) -> None:
        """Compare all books with each other; O(all blocks).

        Raises:
            IntegrityError: naming every contradiction.
        """
        problems = [*self._state_problems(), *self._holder_problems(), *self._pin_problems()]
        if problems:
            raise IntegrityError("; ".join(problems))

    def _settle(self, block_id: int) -> None:
        """Its holders have changed."""
        state = next((s for s in HELD if self._num_holders[s][block_id]), None)
        if state is not None:
            self._set(block_id, state)
            return
        self._generations[block_id] += 1
        if self._num_pins[block_id]:
            self._set(block_id, BlockState.QUARANTINED)
        else:
            self._give_back(block_id)

    def _give_back(self, block_id: int) -> None:
        """Nobody holds, reads or writes it."""
        if self._keeper is not None and self._keeper.keeps(block_id):
            self._set(block_id, BlockState.CACHED)
            self._cached[block_id] = None
        else:
            self._set(block_id, BlockState.FREE)
            self._free.append(block_id)

    def _evict(self, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block_id = next(iter(self._cached))
            del self._cached[block_id]
            assert self._keeper is not None, "only a keeper's blocks are cached"
            self._keeper.forget(block_id)
            self._set(block_id, BlockState.FREE)
            self._free.append(block_id)

    def _set(self, block_id: int, state: BlockState) -> None:
        self._counts[self._states[block_id]] -= 1
        self._counts[state] += 1
        self._states[block_id] = state

    def _require_held(self, block_ids: Sequence[int], held_as: BlockState, action: str) -> None:
        if held_as not in USED:
            raise IllegalTransition(f"cannot {action}: nobody holds blocks as {held_as}")
        self._require(block_ids, USED, action)
        for block_id in block_ids:
            if not self._num_holders[held_as][block_id]:
                raise IllegalTransition(
                    f"cannot {action}: block {block_id} is {self._states[block_id]}, not {held_as}"
                )

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
        actual[BlockState.SWAPPED] = max(0, self._counts[BlockState.SWAPPED])
        problems = [
            f"{self._counts[state]} blocks counted as {state}, {n} are"
            for state, n in actual.items()
            if n != self._counts[state]
        ]
        lists = {BlockState.FREE: self._free, BlockState.CACHED: self._cached}
        for state, listed in lists.items():
            ids = [i for i, actual_state in enumerate(self._states) if actual_state is state]
            if sorted(listed) != ids:
                problems.append(f"{state} list {sorted(listed)} but {state} blocks {ids}")
        return problems

    def _holder_problems(self) -> list[str]:
        problems = []
        for block_id, state in enumerate(self._states):
            held = [s for s in HELD if self._num_holders[s][block_id]]
            want = held[0] if held else None
            if want is not (state if state in USED else None):
                problems.append(f"block {block_id} is {state}, its holders say {want}")
            if BlockState.INCOMING in held and self.num_holders(block_id) > 1:
                problems.append(f"block {block_id} is incoming and has other holders")
            named = self._keeper is not None and self._keeper.keeps(block_id)
            if named and state in (BlockState.FREE, BlockState.INCOMING):
                problems.append(f"block {block_id} is {state} and in the prefix cache")
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
