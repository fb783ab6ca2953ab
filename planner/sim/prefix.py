"""Which blocks of prompts each lane keeps: least recently used ones go first."""

import numpy as np

from planner.sim.state import ABSENT, Caches, Sim
from policy.table import Ints


def caches(capacity: Ints, num_blocks: int) -> Caches:
    """Empty; `capacity` in blocks, by lane. Without any capacity there is nothing to remember."""
    columns = num_blocks + 1 if capacity.any() else 1
    newer = np.full((len(capacity), columns), ABSENT, dtype=np.int64)
    older = newer.copy()
    # The end of a list is its own neighbour while it is empty.
    newer[:, -1] = older[:, -1] = columns - 1
    return Caches(newer, older, np.zeros(len(capacity), dtype=np.int64), capacity)


def cached_tokens(sim: Sim, i: int, r: int) -> int:
    """Leading tokens of a request's prompt that need no computing at a lane."""
    request, kept = sim.requests[r], sim.caches
    hits: int = request.cached
    if kept.capacity[i]:
        begin, num = sim.first_block[r], sim.first_block[r + 1] - sim.first_block[r]
        leading = 0
        while leading < num and kept.newer[i, sim.blocks[begin + leading]] != ABSENT:
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
    end = kept.newer.shape[1] - 1
    while kept.num[i]:
        _unlink(kept, i, kept.newer[i, end])


def _touch(kept: Caches, i: int, block: int) -> None:
    if kept.newer[i, block] != ABSENT:
        _unlink(kept, i, block)
    elif kept.num[i] == kept.capacity[i]:
        _unlink(kept, i, kept.newer[i, kept.newer.shape[1] - 1])
    # `older` of the end is the newest block, `newer` of the end the oldest.
    end = kept.newer.shape[1] - 1
    newest = kept.older[i, end]
    kept.newer[i, newest], kept.older[i, block] = block, newest
    kept.newer[i, block], kept.older[i, end] = end, block
    kept.num[i] += 1


def _unlink(kept: Caches, i: int, block: int) -> None:
    newer, older = kept.newer[i, block], kept.older[i, block]
    kept.older[i, newer], kept.newer[i, older] = older, newer
    kept.newer[i, block] = kept.older[i, block] = ABSENT
    kept.num[i] -= 1
