"""A covering array misses no pair, and is far smaller than the product."""

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.covering import pairs_of, pairwise_rows


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_every_pair_is_covered(sizes: list[int]) -> None:
    columns = [range(size) for size in sizes]
    wanted = set().union(*(pairs_of(row) for row in product(*columns)))
    rows = pairwise_rows(columns)
    assert set().union(*(pairs_of(row) for row in rows)) == wanted
    assert len(set(rows)) == len(rows)


SIZES = [
    # sizes                   at most
    ([2, 2], 4),
    ([2, 2, 2], 4),
    ([3, 3, 3], 11),
    ([9, 2, 3, 3, 3, 2], 36),
]


@pytest.mark.parametrize(("sizes", "at_most"), SIZES)
def test_few_rows_do(sizes: list[int], at_most: int) -> None:
    num_rows = len(pairwise_rows([range(size) for size in sizes]))
    largest, second = sorted(sizes)[-2:]
    assert largest * second <= num_rows <= at_most < prod(sizes) + 1
