"""How much of its prompts a prefix cache of any size holds, the least recently used going first."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from planner.compiled import Recipe, compiled
from planner.sim.traffic import Traffic
from policy.table import Floats, Ints

NEVER = 2**62
"""Blocks of cache that a block which is seen for the first time would need."""


def hit_ratio(traffic: Traffic, cache_blocks: int | None = None) -> float:
    """Blocks hit over blocks asked for, 0 to 1, in a cache of so many blocks (None: without
    bound) that all requests share and that is empty at first; 0 where no prompt has blocks.

    Requests are taken one after the other, as if each were over before the next one comes. A
    prompt hits its longest leading run of cached blocks. Then all of its blocks are in the cache,
    the first ones longest: of a prefix the end goes first.
    """
    return float(hit_curve(traffic, [NEVER - 1 if cache_blocks is None else cache_blocks])[0])


def hit_curve(traffic: Traffic, cache_blocks: Sequence[int]) -> Floats:
    """`hit_ratio` of each of these sizes, from one pass over the requests."""
    needed = np.sort(blocks_needed(traffic))
    num_hits = np.searchsorted(needed, np.asarray(cache_blocks), side="right")
    ratios: Floats = num_hits / max(1, len(needed))
    return ratios


def blocks_needed(traffic: Traffic) -> Ints:
    """For each of `traffic.blocks`, the smallest cache in blocks that has it and all before it in
    its prompt when the prompt comes; NEVER for what no cache can have.

    A cache of n blocks holds the n that were used last. A block's depth is its place in the
    order of last use, and the deepest of a leading run decides.
    """
    num_different = int(traffic.blocks.max(initial=-1)) + 1
    needed: Ints = _machine_code()(traffic.first_block, traffic.blocks, num_different)
    return needed


@cache
def _machine_code() -> Any:  # noqa: ANN401 - as numba
    return compiled(_needed, Recipe(keeps=True))


def _needed(first_block: Ints, blocks: Ints, num_different: int) -> Ints:
    needed = np.empty(len(blocks), dtype=np.int64)
    used_at = np.zeros(num_different, dtype=np.int64)  # turn of the last use; 0: none
    marks = np.zeros(len(blocks) + 1, dtype=np.int64)  # turns that are some block's last use
    turn = num_used = 0
    for request in range(len(first_block) - 1):
        begin, end = first_block[request], first_block[request + 1]
        deepest = 0
        for i in range(begin, end):
            last = used_at[blocks[i]]
            depth = NEVER if last == 0 else num_used - _count(marks, last - 1)
            deepest = max(deepest, depth)
            needed[i] = deepest
        for i in range(end - 1, begin - 1, -1):
            last = used_at[blocks[i]]
            if last:
                _add(marks, last, -1)
            else:
                num_used += 1
            turn += 1
            used_at[blocks[i]] = turn
            _add(marks, turn, 1)
    return needed


# A Fenwick tree: entry i holds the sum of as many entries up to i as its lowest bit says.


def _add(tree: Ints, place: int, value: int) -> None:
    while place < len(tree):
        tree[place] += value
        place += place & -place


def _count(tree: Ints, place: int) -> int:
    """Over all entries from 1 to `place`."""
    total = 0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total
