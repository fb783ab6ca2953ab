"""The requests that a simulation plays, as columns."""

from typing import NamedTuple

import numpy as np

from policy.step_times import PS_PER_S
from policy.table import Floats, Ints

MAX_REQUESTS = 2**24
"""In one run: a request's number and a step's share one word."""


class Traffic(NamedTuple):
    """Columns of requests, in order of arrival."""

    arrival_ps: Ints
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    """At least 1."""
    request_class: Ints
    """Place in the workload's classes."""
    num_cached_tokens: Ints
    """Leading prompt tokens that any instance is taken to hold; for a given hit rate."""
    first_block: Ints
    """One entry more than requests: blocks[first_block[r]:first_block[r + 1]] are of request r."""
    blocks: Ints
    """Numbers from 0 of the prompt's blocks; equal ones hold equal tokens."""
    block_tokens: int
    """Of each block."""


def traffic(  # noqa: PLR0913 - the columns of a table
    arrival_s: Floats,
    num_prompt_tokens: Ints,
    num_output_tokens: Ints,
    *,
    request_class: Ints | None = None,
    num_cached_tokens: Ints | None = None,
    first_block: Ints | None = None,
    blocks: Ints | None = None,
    block_tokens: int = 512,
) -> Traffic:
    """From seconds, sorted by arrival; what is left out is 0 or nothing."""
    num = len(arrival_s)
    assert num <= MAX_REQUESTS, f"{num} requests in one run, {MAX_REQUESTS} at most"
    none = np.zeros(num, dtype=np.int64)
    return Traffic(
        arrival_ps=np.rint(np.asarray(arrival_s) * PS_PER_S).astype(np.int64),
        num_prompt_tokens=np.asarray(num_prompt_tokens, dtype=np.int64),
        num_output_tokens=np.asarray(num_output_tokens, dtype=np.int64),
        request_class=none if request_class is None else request_class,
        num_cached_tokens=none if num_cached_tokens is None else num_cached_tokens,
        first_block=np.zeros(num + 1, dtype=np.int64) if first_block is None else first_block,
        blocks=np.zeros(0, dtype=np.int64) if blocks is None else blocks,
        block_tokens=block_tokens,
    )
