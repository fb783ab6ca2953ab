"""What the instances cache, as they tell it, and how much of a prompt that is; no IO.

It only ever gives hints: a name that is wrong or missing costs time, never a token.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from core.prefix import BlockHash, PrefixHasher
from policy.table import Ints

MAX_NAMED_TOKENS = 16_384
"""Of one prompt: naming them takes 5 ms of the event loop at most, and only where all are cached.
Measured: 0.2 ms per 1,000 tokens in blocks of 16."""
MAX_PROMPTS = 64
"""Whose names are kept: more than are admitted at once, before they are placed."""
MAX_NAMES = 1_000_000
"""Of all instances together, about 200 bytes each."""


class PromptNames:
    """Names the blocks of prompts as the instances of this cluster do."""

    def __init__(self, shared_key: bytes) -> None:
        self._key = shared_key
        self._last = OrderedDict[tuple[str, tuple[int, ...]], NamedPrompt]()

    def of(self, tenant: str, token_ids: tuple[int, ...]) -> "NamedPrompt":
        """One prompt; of the last ones what was named before is kept: a request is admitted,
        placed and perhaps placed anew."""
        key = (tenant, token_ids[:MAX_NAMED_TOKENS])
        if (known := self._last.get(key)) is not None:
            self._last.move_to_end(key)
            return known
        prompt = self._last[key] = NamedPrompt(self._key, *key)
        if len(self._last) > MAX_PROMPTS:
            self._last.popitem(last=False)
        return prompt


class NamedPrompt:
    """Names its blocks when asked, each once."""

    def __init__(self, key: bytes, tenant: str, token_ids: Sequence[int]) -> None:
        self._key = key
        self._tenant = tenant
        self._token_ids = token_ids
        self._chains: dict[int, list[BlockHash]] = {}
        self._names: dict[int, list[int]] = {}

    def names(self, block_size: int) -> Iterator[int]:
        """Of its full blocks, from the first; little more is hashed than is taken."""
        names = self._names.setdefault(block_size, [])
        num_taken = 0
        while True:
            yield from names[num_taken:]
            num_taken = len(names)
            if not self._extend(block_size):
                return

    def _extend(self, block_size: int) -> bool:
        """Name twice as many as before, and one: whoever caches nothing costs one name."""
        chain = self._chains.setdefault(block_size, [])
        end = (2 * len(chain) + 1) * block_size
        hasher = PrefixHasher(self._key, block_size)
        new = hasher.extend(self._tenant, chain, self._token_ids[:end])
        chain += new
        self._names[block_size] += map(_short, new)
        return bool(new)


class PrefixIndex:
    """The names of the blocks that all instances cache, cut to 64 bits.

    A name's holders are the bits of one number, so that a prompt is followed in all caches at once:
    a step per block, however many instances there are.
    """

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._num_names = 0
        self._holders: dict[int, int] = {}
        self._names: dict[int, set[int]] = {}
        self._max_names_of: dict[int, int] = {}
        self._rows_by_size: dict[int, int] = {}

    def __len__(self) -> int:
        """Names kept, of all rows together."""
        return self._num_names

    def join(self, row: int, *, num_blocks: int, block_size: int) -> None:
        """An instance that will tell."""
        self._names[row] = set()
        # A block has one name; news of what went may come after those of what took its place.
        self._max_names_of[row] = 2 * num_blocks
        self._rows_by_size[block_size] = self._rows_by_size.get(block_size, 0) | 1 << row

    def take(
        self, row: int, *, is_snapshot: bool, stored: Iterable[int], removed: Iterable[int]
    ) -> None:
        """News; past their bounds names are dropped."""
        if is_snapshot:
            self.clear(row)
        for name in removed:
            self._remove(row, name)
        names, limit, bit = self._names[row], self._max_names_of[row], 1 << row
        for name in stored:
            if len(names) >= limit or self._num_names >= self._max_names:
                return
            if name not in names:
                names.add(name)
                self._holders[name] = self._holders.get(name, 0) | bit
                self._num_names += 1

    def clear(self, row: int) -> None:
        """It tells no more, or tells all anew."""
        for name in list(self._names[row]):
            self._remove(row, name)

    def leave(self, row: int) -> None:
        """The row is nobody's."""
        self.clear(row)
        del self._names[row], self._max_names_of[row]
        for size in list(self._rows_by_size):
            self._rows_by_size[size] &= ~(1 << row)
            if not self._rows_by_size[size]:
                del self._rows_by_size[size]

    def hit_tokens(self, prompt: NamedPrompt, num_rows: int) -> Ints:
        """How many of a prompt's leading tokens each row caches."""
        hits = np.zeros(num_rows, np.int64)
        if not self._holders:
            return hits
        for size, rows in self._rows_by_size.items():
            holders, holding = list[bytes](), rows
            for name in prompt.names(size):
                holding &= self._holders.get(name, 0)
                if not holding:
                    break
                holders.append(holding.to_bytes(-(-num_rows // 8), "little"))
            if holders:
                # Whoever caches n blocks in a row is among the holders of each.
                hits += size * _count_bits(holders, num_rows)
        return hits

    def _remove(self, row: int, name: int) -> None:
        if name not in self._names[row]:
            return
        self._names[row].discard(name)
        self._num_names -= 1
        if holders := self._holders[name] & ~(1 << row):
            self._holders[name] = holders
        else:
            del self._holders[name]


def num_tokens_to_fetch(num_there: int, num_here: int, block_size_here: int) -> int:
    """Leading tokens worth fetching: all there, if at least a block more than here; else 0."""
    return num_there if num_there - num_here >= block_size_here else 0


def _count_bits(numbers: Sequence[bytes], num_rows: int) -> Ints:
    """How many of them have each bit."""
    octets = np.frombuffer(b"".join(numbers), np.uint8).reshape(len(numbers), -1)
    bits = np.unpackbits(octets, axis=1, count=num_rows, bitorder="little")
    counts: Ints = bits.sum(axis=0, dtype=np.int64)
    return counts


def _short(name: BlockHash) -> int:
    """As instances tell it; see engine.prefix_cache."""
    return int.from_bytes(name[:8], "little")
