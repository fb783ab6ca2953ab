"""What prompts say: random tokens, of which some prompts share what they should share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bench.load.offer import Arrival
from planner.workload.trace import BLOCK_TOKENS, TraceRow

DEFAULT_VOCABULARY = range(1000, 30_000)
"""Ordinary tokens of every tokenizer in use: Llama 2's, the smallest of them, has 32,000."""


class Stream(IntEnum):
    """Independent random numbers of one seed."""

    OWN = 0
    """Tokens of one request; its number follows."""
    PREFIX = 1
    """Tokens of a shared prefix; its number follows."""
    BLOCK = 2
    """Tokens of a block of a trace; its hash follows."""
    CHOICE = 3
    """Which prefix a request has; the request's number follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefixes:
    """Each prompt begins with one of these, before the tokens of its own."""

    num_prefixes: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """A seed's prompts: the same ones every time, in whatever order they are made."""

    seed: int
    """At least 0."""
    vocabulary: range = DEFAULT_VOCABULARY
    shared: SharedPrefixes | None = None

    def arrivals(self, rows: Iterable[TraceRow]) -> Iterator[Arrival]:
        """Made one by one as they are asked for: those of a long trace would not fit in memory."""
        for number, row in enumerate(rows):
            yield Arrival(
                at_s=row.at_s,
                token_ids=self._token_ids(number, row),
                max_tokens=row.num_output_tokens,
            )

    def _token_ids(self, number: int, row: TraceRow) -> Sequence[int]:
        token_ids = self._prefix(number)
        num_left = row.num_prompt_tokens
        for block in row.block_hashes:
            token_ids += self._tokens(Stream.BLOCK, block, min(num_left, BLOCK_TOKENS))
            num_left = max(0, num_left - BLOCK_TOKENS)
        return token_ids + self._tokens(Stream.OWN, number, num_left)

    def _prefix(self, number: int) -> list[int]:
        if self.shared is None:
            return []
        chosen = int(self._random(Stream.CHOICE, number, 1)[0] % self.shared.num_prefixes)
        return self._tokens(Stream.PREFIX, chosen, self.shared.num_tokens)

    def _tokens(self, stream: Stream, number: int, num_tokens: int) -> list[int]:
        drawn = self._random(stream, number, num_tokens) % len(self.vocabulary)
        return [self.vocabulary[i] for i in drawn.tolist()]

    def _random(self, stream: Stream, number: int, num: int) -> "np.typing.NDArray[np.uint64]":
        # The raw numbers: of all that numpy draws, only they are promised to stay the same.
        seeds = np.random.SeedSequence((self.seed, stream, number))
        return np.asarray(np.random.PCG64(seeds).random_raw(num), dtype=np.uint64)
