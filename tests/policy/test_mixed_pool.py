"""Who helps the other pool, and until when: by table, and that nobody comes and goes."""

from typing import Any

import numpy as np
import pytest

from policy.mixed_pool import Thresholds, leaving_helpers, next_helper
from policy.table import Phase
from tests.policy.fleets import D, M, P, array, row, table

BOUNDS = Thresholds(above_s=1.0, below_s=0.25)
BEGINS = [
    # id                             phase          rows                              waits_s  want
    ("the pool is calm", Phase.PREFILL, [row(P), row(D), row(D)], [0.9, 0, 0], -1),
    ("it is not", Phase.PREFILL, [row(P), row(D), row(D)], [1.1, 0, 0], 1),
    (
        "the least busy one",
        Phase.PREFILL,
        [row(P), row(D, num_decoding=2), row(D, num_incoming=1)],
        [2, 0, 0],
        2,
    ),
    ("one place is calm", Phase.PREFILL, [row(P), row(P), row(D), row(D)], [2, 0.1, 0, 0], -1),
    ("a helper is calm", Phase.PREFILL, [row(P), row(D, helps=True), row(D)], [2, 0, 0], -1),
    ("a mixed one is calm", Phase.PREFILL, [row(P), row(M), row(D), row(D)], [2, 0, 0, 0], -1),
    (
        "it is not either",
        Phase.PREFILL,
        [row(P), row(D, helps=True), row(D), row(D)],
        [2, 2, 0, 0],
        2,
    ),
    ("never the last of its own pool", Phase.PREFILL, [row(P), row(D)], [2, 0], -1),
    (
        "decode is helped too",
        Phase.DECODE,
        [row(D), row(P, num_prefilling=1), row(P)],
        [2, 0, 0],
        2,
    ),
    (
        "dead ones do not help",
        Phase.PREFILL,
        [row(P), row(D, alive=False), row(D), row(D)],
        [2, 0, 0, 0],
        2,
    ),
]


@pytest.mark.parametrize(
    ("phase", "rows", "waits_s", "want"), [c[1:] for c in BEGINS], ids=[c[0] for c in BEGINS]
)
def test_begins(phase: Phase, rows: list[dict[str, Any]], waits_s: list[float], want: int) -> None:
    snapshot = table(*rows)
    assert next_helper(snapshot, snapshot.alive, phase, array(*waits_s), BOUNDS) == want


LEAVES = [
    # id                            phase          helper             waits_s: own, helper's want
    ("the pool is calm", Phase.PREFILL, row(D, helps=True), (0.2, 0), True),
    ("it is not yet", Phase.PREFILL, row(D, helps=True), (0.3, 0), False),
    ("but for what the helper has", Phase.PREFILL, row(D, helps=True), (0.2, 0.1), False),
    ("with what the helper has", Phase.PREFILL, row(D, helps=True), (0.1, 0.1), True),
    ("its own work is no reason", Phase.PREFILL, row(D, helps=True, num_decoding=9), (0, 0), True),
    ("who helps the other way", Phase.PREFILL, row(P, helps=True), (0, 0), False),
    ("decode's helper", Phase.DECODE, row(P, helps=True), (0, 0), True),
]


@pytest.mark.parametrize(
    ("phase", "helper", "waits_s", "want"), [c[1:] for c in LEAVES], ids=[c[0] for c in LEAVES]
)
def test_leaves(
    phase: Phase, helper: dict[str, Any], waits_s: tuple[float, float], *, want: bool
) -> None:
    own = row(P) if phase is Phase.PREFILL else row(D)
    snapshot = table(own, helper)
    got = leaving_helpers(snapshot, snapshot.alive, phase, array(*waits_s), BOUNDS)
    assert got.tolist() == [False, want]


def test_the_last_one_there_does_not_leave() -> None:
    snapshot = table(row(P, alive=False), row(D, helps=True))
    args = (snapshot, snapshot.alive, Phase.PREFILL, array(0, 0), BOUNDS)
    assert not leaving_helpers(*args).any()


def test_nobody_leaves_in_the_moment_it_begins() -> None:
    snapshot = table(row(P), row(D), row(D))
    for wait_s in np.linspace(0, 3, 31):
        waits_s = array(wait_s, 0, 0)
        begun = next_helper(snapshot, snapshot.alive, Phase.PREFILL, waits_s, BOUNDS)
        if begun >= 0:
            snapshot.helps[begun] = True
            args = (snapshot, snapshot.alive, Phase.PREFILL, waits_s, BOUNDS)
            assert not leaving_helpers(*args).any()
            snapshot.helps[begun] = False
