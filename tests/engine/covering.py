"""Few rows that together show every pair of values of any two columns."""

from collections.abc import Sequence
from itertools import combinations, product

Row = tuple[object, ...]
Pair = tuple[int, object, int, object]


def pairs_of(row: Row) -> set[Pair]:
    """Each two columns with the values they have here."""
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}


def pairwise_rows(columns: Sequence[Sequence[object]]) -> list[Row]:
    """Greedy: always the first row of the full product that shows most pairs not yet seen."""
    rows = {row: pairs_of(row) for row in product(*columns)}
    missing = set().union(*rows.values())
    chosen: list[Row] = []
    while missing:
        best = max(rows, key=lambda row: len(rows[row] & missing))
        missing -= rows.pop(best)
        chosen.append(best)
    return chosen
