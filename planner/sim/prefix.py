"""Which blocks of prompts each lane keeps: least recently used ones go first."""

import numpy as np

from planner.sim.state import ABSENT, Caches, Sim
from policy.table import Ints

NEWER, OLDER = 0, 1


def caches(capacity: Ints, num_blocks: int) -> Caches:
    """Empty; `capacity` in blocks, by lane. Without any capacity there is nothing to remember."""
    rows = num_blocks + 1 if capacity.any() else 1
    # 32 bits, both neighbours side by side: of millions of blocks each costs a visit to memory.
    neighbours = np.full((len(capacity), rows, 2), ABSENT, dtype=np.int32)
    # The end of a list is its own neighbour while it is empty.
    neighbours[:, -1] = rows - 1
    return Caches(neighbours, np.zeros(len(capacity), dtype=np.int64), capacity)


def cached_tokens(sim: Sim, i: int, r: int) -> int:
    """Leading tokens of a request's prompt that need no computing at a lane."""
    request, kept = sim.requests[r], sim.caches
    hits: int = request.cached
    if kept.capacity[i]:
        begin, num = sim.first_block[r], sim.first_block[r + 1] - sim.first_block[r]
        leading = 0
        while leading < num and kept.neighbours[i, sim.blocks[begin + leading], NEWER] != ABSENT:
            leading += 1
        hits = max(hits, min(leading * sim.block_tokens, request.prompt))
    return hits


def keep(sim: Sim, i: int, r: int) -> None:
    """Remember a prompt that has been read, its beginning longest."""
    if sim.caches.capacity[i] == 0:
        return
    for n in range(sim.first_block[r + 1] - 1, sim.first_block[r] - 1, -1):
        _touch(sim.caches, i, sim.blocks[n])


def forget(kept: Caches, i: int) -> None:
    """All that a lane keeps."""
    end = kept.neighbours.shape[1] - 1
    while kept.num[i]:
        _unlink(kept, i, kept.neighbours[i, end, NEWER])


def _touch(kept: Caches, i: int, block: int) -> None:
    of, end = kept.neighbours, kept.neighbours.shape[1] - 1
    if of[i, block, NEWER] != ABSENT:
        _unlink(kept, i, block)
    elif kept.num[i] == kept.capacity[i]:
        _unlink(kept, i, of[i, end, NEWER])
    # The end's older neighbour is the newest block, its newer one the oldest.
    newest = of[i, end, OLDER]
    of[i, newest, NEWER], of[i, block, OLDER] = block, newest
    of[i, block, NEWER], of[i, end, OLDER] = end, block
    kept.num[i] += 1


def _unlink(kept: Caches, i: int, block: int) -> None:
    of = kept.neighbours
    newer, older = of[i, block, NEWER], of[i, block, OLDER]
    of[i, newer, OLDER], of[i, older, NEWER] = older, newer
    of[i, block, NEWER] = of[i, block, OLDER] = ABSENT
    kept.num[i] -= 1
