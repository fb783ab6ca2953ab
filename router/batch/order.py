"""In which order prompts are computed so that what they share is computed once; pure.

After BatchLLM (Zheng et al. 2024): requests of a common prefix are brought together, the prefix
first. Here as a forest: a prompt waits for the one it shares most with, whose KV is in the prefix
cache then, and siblings run together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MIN_SHARED_CHARS = 64
"""Less is not worth waiting for: some 16 tokens, a block."""


@dataclass(frozen=True, slots=True)
class Order:
    """A forest over prompts, by their indices."""

    sequence: tuple[int, ...]
    """All, as they should be begun: those that share stand together."""
    parent: dict[int, int]
    """Whom a prompt waits for; absent: nobody."""
    root: dict[int, int]
    """The first of all that share something with it; its own index when nobody does."""


def order(prompts: Sequence[str], min_shared_chars: int = MIN_SHARED_CHARS) -> Order:
    """Sorted, neighbours share the most; each waits for the first that shares as much with it as
    its left neighbour does."""
    sequence = sorted(range(len(prompts)), key=lambda index: prompts[index])
    parent, root = dict[int, int](), dict[int, int]()
    # (length of what is shared, the first that has it), lengths rising: the open branches.
    branches: list[tuple[int, int]] = []
    before: int | None = None
    for index in sequence:
        shared = 0 if before is None else _num_shared(prompts[before], prompts[index])
        first = index if before is None else before
        while branches and branches[-1][0] >= shared:
            first = branches.pop()[1]
        if before is not None and shared >= min_shared_chars:
            branches.append((shared, first))
            parent[index] = first
            root[index] = root[first]
        else:
            branches.clear()
            root[index] = index
        before = index
    return Order(tuple(sequence), parent, root)


def _num_shared(one: str, other: str) -> int:
    """Characters at the start that are equal; by halving, since comparing slices is fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
