"""What prefix caches of any size hold: against a cache that is one, and as published."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.sim.traffic import Traffic, traffic
from planner.workload.prefix import NEVER, blocks_needed, hit_curve, hit_ratio


def of_blocks(prompts: list[list[int]]) -> Traffic:
    num = len(prompts)
    return traffic(
        np.arange(num, dtype=float),
        np.full(num, 512),
        np.ones(num, dtype=np.int64),
        first_block=np.cumsum([0, *map(len, prompts)]),
        blocks=np.array([each for prompt in prompts for each in prompt], dtype=np.int64),
    )


def num_hits(prompts: list[list[int]], cache_blocks: int) -> int:
    """By a cache: the last of its blocks is the one that was used last."""
    cache, hits = OrderedDict[int, None](), 0
    for prompt in prompts:
        for block in prompt:
            if block not in cache:
                break
            hits += 1
        for block in reversed(prompt):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > cache_blocks:
            cache.popitem(last=False)
    return hits


CASES = [
    # id              prompts                               blocks needed
    ("nothing", [[], []], []),
    ("new", [[0, 1], [2]], [NEVER] * 3),
    ("the same", [[0, 1, 2], [0, 1, 2]], [NEVER, NEVER, NEVER, 1, 2, 3]),
    ("grown", [[0], [0, 1]], [NEVER, 1, NEVER]),
    ("another between", [[0, 1], [2], [0, 1]], [NEVER, NEVER, NEVER, 2, 3]),
    ("a branch", [[0, 1], [0, 2], [0, 1]], [NEVER, NEVER, 1, NEVER, 1, 3]),
    # 1 is cached, but what comes before it is not.
    ("not leading", [[0, 1], [2, 1]], [NEVER] * 4),
    ("twice in one", [[0, 0], [0, 0]], [NEVER, NEVER, 1, 1]),
]


@pytest.mark.parametrize(("prompts", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_blocks_needed(prompts: list[list[int]], want: list[int]) -> None:
    assert blocks_needed(of_blocks(prompts)).tolist() == want


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=12))
def test_any_size_hits_what_a_cache_of_that_size_hits(prompts: list[list[int]]) -> None:
    made, total = of_blocks(prompts), sum(map(len, prompts))
    sizes = [*range(16), NEVER - 1]
    want = [num_hits(prompts, size) / max(1, total) for size in sizes]
    curve = hit_curve(made, sizes)
    assert curve.tolist() == want
    assert (np.diff(curve) >= 0).all()
    assert [hit_ratio(made, size) for size in (3, None)] == [want[3], want[-1]]
