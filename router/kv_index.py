"""What the instances cache, as they tell it, and how much of a prompt that is; no IO."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.prefix import BlockHash, PrefixHasher

MAX_NAMED_TOKENS = 16_384
"""Of one prompt: naming them takes 5 ms of the event loop at most, and only where all are cached.
Measured: 0.2 ms per 1,000 tokens in blocks of 16."""


class KvIndex:
    """The names of the blocks that one instance caches, cut to 64 bits.

    It only ever gives hints: a name that is wrong or missing costs time, never a token.
    """

    def __init__(self, num_blocks: int) -> None:
        # A block has one name; news of what went may come after those of what took its place.
        self._max_names = 2 * num_blocks
        self._names: set[int] = set()

    def __contains__(self, name: int) -> bool:
        """Whether it is cached, as last told."""
        return name in self._names

    def __len__(self) -> int:
        """Names kept."""
        return len(self._names)

    def take(self, *, is_snapshot: bool, stored: Iterable[int], removed: Iterable[int]) -> None:
        """News; past its bound names are dropped."""
        if is_snapshot:
            self._names.clear()
        self._names.difference_update(removed)
        for name in stored:
            if len(self._names) >= self._max_names:
                return
            self._names.add(name)

    def clear(self) -> None:
        """Nobody tells any more."""
        self._names.clear()


@dataclass(frozen=True, slots=True)
class Cache:
    """One instance's, as a router sees it."""

    index: KvIndex
    block_size: int
    """Tokens."""


class PromptNames:
    """Names the blocks of prompts as the instances of this cluster do."""

    def __init__(self, shared_key: bytes) -> None:
        self._key = shared_key

    def num_tokens_to_fetch(
        self, there: Cache, here: Cache, tenant: str, token_ids: Sequence[int]
    ) -> int:
        """Leading tokens that are cached `there`, if at least a block more than `here`; else 0."""
        names = self._leading(there, tenant, token_ids)
        if not names:
            return 0
        if there.block_size == here.block_size:
            num_here = _num_leading(names, here.index)
        else:
            num_here = len(self._leading(here, tenant, token_ids))
        num_there = len(names) * there.block_size
        return num_there if num_there - num_here * here.block_size >= here.block_size else 0

    def _leading(self, cache: Cache, tenant: str, token_ids: Sequence[int]) -> list[int]:
        """The names up to the first that is not cached; little more than those is ever made."""
        hasher = PrefixHasher(self._key, cache.block_size)
        chain: list[BlockHash] = []
        while True:
            # Twice as many each time: whoever caches nothing costs one name.
            end = min((2 * len(chain) + 1) * cache.block_size, MAX_NAMED_TOKENS)
            added = hasher.extend(tenant, chain, token_ids[:end])
            chain += added
            num_cached = _num_leading(map(_short, chain), cache.index)
            if not added or num_cached < len(chain):
                return [_short(name) for name in chain[:num_cached]]


def _num_leading(names: Iterable[int], index: KvIndex) -> int:
    return sum(1 for _ in _leading_of(names, index))


def _leading_of(names: Iterable[int], index: KvIndex) -> Iterator[int]:
    for name in names:
        if name not in index:
            return
        yield name


def _short(name: BlockHash) -> int:
    """As instances tell it; see engine.prefix_cache."""
    return int.from_bytes(name[:8], "little")
