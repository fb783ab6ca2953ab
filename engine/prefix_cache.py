"""Which block holds which prefix: names, hits, and what changed."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from core.prefix import BlockHash

MAX_JOURNAL = 16_384
"""Changes remembered for those who follow them; who is further behind gets a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvNews:
    """What a follower of the cache has not been told; names are cut to 64 bits."""

    is_snapshot: bool
    """Forget what was told before: `stored` is all there is."""
    stored: tuple[int, ...]
    removed: tuple[int, ...]

    def __bool__(self) -> bool:
        """Something changed."""
        return bool(self.is_snapshot or self.stored or self.removed)


class PrefixCache:
    """Names the content of blocks; the allocator decides how long they live, and is their keeper's
    only caller. A named block is never written: its content is what its name says."""

    def __init__(self) -> None:
        self.num_queried_tokens = 0
        """Prompt tokens looked up since the start."""
        self.num_hit_tokens = 0
        """Of them, those found."""
        self._block_of: dict[BlockHash, int] = {}
        self._name_of: dict[int, BlockHash] = {}
        self._journal: deque[BlockHash] = deque(maxlen=MAX_JOURNAL)
        self._num_changes = 0

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def num_changes(self) -> int:
        """Names given and forgotten since the start: a follower's position."""
        return self._num_changes

    def find(self, chain: Sequence[BlockHash]) -> list[int]:
        """Blocks of the longest known beginning of the chain."""
        block_ids: list[int] = []
        for name in chain:
            if (block_id := self._block_of.get(name)) is None:
                break
            block_ids.append(block_id)
        return block_ids

    def insert(self, chain: Iterable[BlockHash], block_ids: Iterable[int]) -> None:
        """These blocks are full and computed. What is known already keeps its first block."""
        for name, block_id in zip(chain, block_ids, strict=False):
            if name not in self._block_of and block_id not in self._name_of:
                self._block_of[name], self._name_of[block_id] = block_id, name
                self._note(name)

    def keeps(self, block_id: int) -> bool:
        """See engine.block_allocator.Keeper."""
        return block_id in self._name_of

    def forget(self, block_id: int) -> None:
        """See engine.block_allocator.Keeper."""
        name = self._name_of.pop(block_id)
        del self._block_of[name]
        self._note(name)

    def news(self, since: int | None) -> KvNews:
        """What changed after the first `since` changes; None: everything, as a snapshot."""
        if since is None or self._num_changes - since > len(self._journal):
            return KvNews(is_snapshot=True, stored=tuple(map(_short, self._block_of)), removed=())
        touched = set(islice(reversed(self._journal), self._num_changes - since))
        stored = tuple(_short(name) for name in touched if name in self._block_of)
        removed = tuple(_short(name) for name in touched if name not in self._block_of)
        return KvNews(is_snapshot=False, stored=stored, removed=removed)

    def _note(self, name: BlockHash) -> None:
        """Given or forgotten; which of the two is looked up when it is told."""
        self._journal.append(name)
        self._num_changes += 1


def _short(name: BlockHash) -> int:
    return int.from_bytes(name[:8], "little")
