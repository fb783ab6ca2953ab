"""Requests over a Runner whose KV is shared, copied, dropped, swapped and forgotten by hand."""

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from engine.batch import BatchEntry
from engine.kv_cache import KvCache
from tests.engine.architectures import Architecture
from tests.engine.tiny import sample_spec

WHOLE = 10**9
"""As a chunk: everything at once."""
MAX_TOKENS = 4096
"""Room for all requests of a test together."""


@dataclass(slots=True, eq=False)
class PagedRequest:
    """One request's tokens, and where their KV lies."""

    prompt: tuple[int, ...]
    forgets: bool = True
    """Gives up blocks that left the window, where there is one."""
    output: tuple[int, ...] = ()
    start: int = 0
    kv_start: int = 0
    block_ids: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Due before its next step; the sources are held until then."""
    swapped: bytes | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """What has to be in the cache, but for the last, before a token is sampled."""
        return self.prompt + self.output


class BlockPool:
    """Blocks with their holders counted; those of nobody are full of NaN, which no mask hides."""

    def __init__(self, cache: KvCache, num_blocks: int) -> None:
        # Shuffled: tables that are runs of blocks would take the path without a gather.
        self._free = deque(random.Random(0).sample(range(num_blocks), num_blocks))
        self._holders: Counter[int] = Counter()
        self._cache = cache
        cache.data.fill_(float("nan"))

    def take(self, num_blocks: int) -> list[int]:
        """Those free for the longest time."""
        taken = [self._free.popleft() for _ in range(num_blocks)]
        self.share(taken)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """One holder more."""
        self._holders.update(block_ids)

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder less."""
        for block_id in block_ids:
            assert self._holders[block_id] > 0
            self._holders[block_id] -= 1
            if not self._holders[block_id]:
                self.poison(block_id)
                self._free.append(block_id)

    def poison(self, block_id: int) -> None:
        """NaN over all of a block."""
        size = self._cache.block_size
        self._cache.data[:, :, block_id * size : (block_id + 1) * size] = float("nan")

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds."""
        return sum(count > 0 for count in self._holders.values())


class Pager:
    """Steps requests, and does to their KV between steps what a scheduler may do."""

    def __init__(self, architecture: Architecture, block_size: int) -> None:
        num_blocks = MAX_TOKENS // block_size
        self.runner = architecture.model.runner(num_blocks, block_size)
        self.cache = self.runner.kv_cache
        self.pool = BlockPool(self.cache, num_blocks)
        self._window_tokens = architecture.window_tokens
        self._block_size = block_size

    def step(self, requests: Sequence[PagedRequest], chunks: Sequence[int]) -> None:
        """The next chunk, or the last sampled token, of each."""
        pairs = zip(requests, chunks, strict=True)
        entries = [self._entry(request, chunk) for request, chunk in pairs]
        result = self.runner.step(entries)
        for request, entry, token_id in zip(requests, entries, result.token_ids, strict=True):
            self.pool.release(source for source, _ in request.copies)
            request.copies = []
            request.start = entry.stop
            if token_id is not None:
                request.output += (token_id,)

    def share(self, request: PagedRequest, donor: PagedRequest) -> int:
        """Let a request without KV use what it has in common with the donor; how many tokens.

        Never the last one: its logits are needed. A block shared in part is copied on write.
        """
        assert not request.block_ids
        assert not request.swapped
        num_common = _num_common(request.tokens[:-1], donor.tokens[: donor.start])
        kv_start = self._first_seen(request, num_common)
        if not num_common or not donor.block_ids or donor.copies or donor.kv_start > kv_start:
            return 0
        whole, rest = divmod(num_common, self._block_size)
        request.block_ids = donor.block_ids[:whole]
        request.start, request.kv_start = num_common, kv_start
        self.pool.share(self._kept(request))
        if rest:
            source, (target,) = donor.block_ids[whole], self.pool.take(1)
            self.pool.share([source])
            request.block_ids.append(target)
            request.copies = [(source, target)]
        return num_common

    def drop(self, request: PagedRequest) -> None:
        """Lose all its KV: it ended, or is to be computed again from its tokens."""
        self.pool.release(self._kept(request))
        self.pool.release(source for source, _ in request.copies)
        request.block_ids, request.copies, request.swapped = [], [], None
        request.start = request.kv_start = 0

    def swap_out(self, request: PagedRequest) -> None:
        """Move its KV to host memory."""
        assert not request.copies, "the KV is not there yet"
        tokens = range(request.kv_start, request.start)
        layers = range(self.cache.num_layers)
        request.swapped = self.cache.gather(layers, request.block_ids, tokens).tobytes()
        self.pool.release(self._kept(request))
        request.block_ids = []

    def swap_in(self, request: PagedRequest) -> None:
        """Move it back, to other blocks."""
        assert request.swapped is not None
        first, last = request.kv_start // self._block_size, -(-request.start // self._block_size)
        request.block_ids = [-1] * first + self.pool.take(last - first)
        tokens = range(request.kv_start, request.start)
        layers = range(self.cache.num_layers)
        payload = memoryview(request.swapped)
        self.cache.scatter(layers, request.block_ids, tokens, payload)
        request.swapped = None

    def _entry(self, request: PagedRequest, chunk: int) -> BatchEntry:
        tokens = request.tokens[request.start :][:chunk]
        stop = request.start + len(tokens)
        self._forget(request)
        num_blocks = -(-stop // self._block_size)
        request.block_ids += self.pool.take(num_blocks - len(request.block_ids))
        sampled = stop == len(request.tokens)
        return BatchEntry(
            key="request",
            token_ids=tokens,
            start=request.start,
            block_ids=tuple(request.block_ids),
            sample=sample_spec(request.prompt, request.output) if sampled else None,
            kv_start=request.kv_start,
            copies=tuple(request.copies),
        )

    def _forget(self, request: PagedRequest) -> None:
        """Give up the blocks that no later token sees; their ids stay in the table, unread."""
        first_seen = max(request.kv_start, self._first_seen(request, request.start))
        gone = slice(request.kv_start // self._block_size, first_seen // self._block_size)
        self.pool.release(request.block_ids[gone])
        request.kv_start = first_seen

    def _first_seen(self, request: PagedRequest, start: int) -> int:
        if self._window_tokens is None or not request.forgets:
            return 0
        return max(start - self._window_tokens + 1, 0)

    def _kept(self, request: PagedRequest) -> list[int]:
        return request.block_ids[request.kv_start // self._block_size :]


def _num_common(tokens: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(tokens, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
