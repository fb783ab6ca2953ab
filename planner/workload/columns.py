"""Requests as columns: how long they are and what their prompts share, and recorded ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import ConfigError
from planner.workload.trace import TraceRow, read_lengths, read_trace
from policy.table import Floats, Ints

MAX_TOKENS = 2**31
"""Of one prompt or answer: the sum over any run fits into 64 bits."""


class Requests(NamedTuple):
    """Without their moments."""

    num_prompt_tokens: Ints
    num_output_tokens: Ints
    first_block: Ints
    """One entry more than requests: blocks[first_block[r]:first_block[r + 1]] are of request r."""
    blocks: Ints
    """Of the prompts, BLOCK_TOKENS tokens each; equal numbers hold equal tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Recorded requests."""

    at_s: Floats
    """Sorted, the first 0."""
    requests: Requests
    num_blocks: int
    """Different ones: their numbers are 0 to num_blocks − 1."""

    @property
    def rate_per_s(self) -> float:
        """One over the mean gap. Raises ConfigError where there is none."""
        span_s = float(self.at_s[-1])
        if not span_s:
            raise ConfigError((f"a trace of {len(self.at_s)} requests at one moment has no rate",))
        return (len(self.at_s) - 1) / span_s


def without_blocks(num_prompt_tokens: Ints, num_output_tokens: Ints) -> Requests:
    """Requests of which no two have anything in common."""
    num = len(num_prompt_tokens)
    return Requests(
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        first_block=np.zeros(num + 1, dtype=np.int64),
        blocks=np.zeros(0, dtype=np.int64),
    )


def picked(requests: Requests, rows: Ints) -> Requests:
    """These rows, in this order, each as often as it is named."""
    begins, sizes = requests.first_block[rows], np.diff(requests.first_block)[rows]
    first_block = _bounds(sizes)
    # The place of each block in the old order: its row's begin, and how far it is from there.
    places = np.arange(first_block[-1]) + np.repeat(begins - first_block[:-1], sizes)
    return Requests(
        num_prompt_tokens=requests.num_prompt_tokens[rows],
        num_output_tokens=requests.num_output_tokens[rows],
        first_block=first_block,
        blocks=requests.blocks[places],
    )


def joined(parts: Sequence[Requests]) -> Requests:
    """One after the other; blocks of equal numbers stay equal."""
    sizes = np.concatenate([np.diff(part.first_block) for part in parts])
    return Requests(
        num_prompt_tokens=np.concatenate([part.num_prompt_tokens for part in parts]),
        num_output_tokens=np.concatenate([part.num_output_tokens for part in parts]),
        first_block=_bounds(sizes),
        blocks=np.concatenate([part.blocks for part in parts]),
    )


def trace_of(rows: Sequence[TraceRow]) -> Trace:
    """Of rows sorted by arrival. Raises ConfigError for lengths beyond MAX_TOKENS."""
    pairs = ((row.num_prompt_tokens, row.num_output_tokens) for row in rows)
    prompts, outputs = pairs_of(pairs)
    numbers = dict[int, int]()
    hashes = chain.from_iterable(row.block_hashes for row in rows)
    blocks = [numbers.setdefault(each, len(numbers)) for each in hashes]
    sizes = np.array([len(row.block_hashes) for row in rows], dtype=np.int64)
    return Trace(
        at_s=np.array([row.at_s for row in rows], dtype=np.float64),
        requests=Requests(
            num_prompt_tokens=prompts,
            num_output_tokens=outputs,
            first_block=_bounds(sizes),
            blocks=np.array(blocks, dtype=np.int64),
        ),
        num_blocks=len(numbers),
    )


def pairs_of(pairs: Iterable[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Columns of prompt and output tokens. Raises ConfigError beyond MAX_TOKENS."""
    table = list(pairs)
    if (most := max(map(max, table))) > MAX_TOKENS:
        raise ConfigError((f"a request may have {MAX_TOKENS} tokens at most, got {most}",))
    prompts, outputs = np.array(table, dtype=np.int64).T
    return np.ascontiguousarray(prompts), np.ascontiguousarray(outputs)


def load_trace(path: Path) -> Trace:
    """Raises ConfigError for what is no trace."""
    return trace_of(read_trace(path))


def load_pairs(path: Path) -> tuple[Ints, Ints]:
    """Prompt and output tokens of a trace, or of a file of lengths alone."""
    return pairs_of(read_lengths(path))


def _bounds(sizes: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
