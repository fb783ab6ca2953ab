"""Placement: filter, score and pick by table, then as laws over random snapshots."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NoInstance, Saturated
from core.limits import DEFAULT_MAX_QUEUED
from policy.placement import POLICIES, Need, Phase, PickState, Table, place

P, D, M, R = 0, 1, 2, 3
"""Codes of the roles."""

DEFAULTS = {
    "fingerprint": 0,
    "alive": True,
    "draining": False,
    "num_prefilling": 0,
    "num_pending_prompt_tokens": 0,
    "num_incoming": 0,
    "num_decoding": 0,
    "num_free_blocks": 100,
    "num_blocks": 100,
    "block_size": 16,
}


def table(*rows: dict[str, Any]) -> Table:
    full = [{**DEFAULTS, **row} for row in rows]
    columns: dict[str, Any] = {
        name: np.array([row[name] for row in full]) for name in ("role", *DEFAULTS)
    }
    for name in ("alive", "draining"):
        columns[name] = columns[name].astype(np.bool_)
    return Table(**columns)


def row(role: int, **values: Any) -> dict[str, Any]:
    return {"role": role, **values}


PICKS = [
    # id                             phase          rows                                     want
    ("own role", Phase.DECODE, [row(P), row(D)], {1}),
    ("mixed is own of both", Phase.PREFILL, [row(D), row(M)], {1}),
    ("another role rather than nobody", Phase.PREFILL, [row(D), row(D, alive=False)], {0}),
    ("dead ones are passed over", Phase.PREFILL, [row(P, alive=False), row(P)], {1}),
    ("so are draining ones", Phase.PREFILL, [row(P, draining=True), row(D)], {1}),
    ("and routers", Phase.PREFILL, [row(R), row(D)], {1}),
    (
        "fewest pending tokens",
        Phase.PREFILL,
        [row(P, num_pending_prompt_tokens=9), row(P, num_pending_prompt_tokens=8)],
        {1},
    ),
    (
        "fewest running and incoming",
        Phase.DECODE,
        [row(D, num_decoding=3), row(D, num_decoding=1, num_incoming=1)],
        {1},
    ),
    (
        "of equals the one with more room",
        Phase.DECODE,
        [row(D, num_free_blocks=10), row(D, num_free_blocks=90)],
        {1},
    ),
    ("too small ones are passed over", Phase.DECODE, [row(D, num_blocks=1), row(D)], {1}),
    (
        "full queues are passed over",
        Phase.DECODE,
        [row(D, num_incoming=DEFAULT_MAX_QUEUED), row(D, num_decoding=500)],
        {1},
    ),
    (
        "an own role that is full yields to another",
        Phase.DECODE,
        [row(P), row(D, num_incoming=DEFAULT_MAX_QUEUED)],
        {0},
    ),
]


@pytest.mark.parametrize(
    ("phase", "rows", "want"), [c[1:] for c in PICKS], ids=[c[0] for c in PICKS]
)
def test_least_loaded(phase: Phase, rows: list[dict[str, Any]], want: set[int]) -> None:
    need = Need(phase=phase, num_tokens=100)
    got = {place(table(*rows), need, "least_loaded", PickState(0, n)).row for n in range(4)}
    assert got == want


def test_equals_take_turns() -> None:
    snapshot, state = table(row(P), row(P), row(P)), PickState()
    got = []
    for _ in range(6):
        decision = place(snapshot, Need(phase=Phase.PREFILL, num_tokens=1), "least_loaded", state)
        state = decision.state
        got.append(decision.row)
    assert got == [0, 1, 2, 0, 1, 2]


def test_avoided_and_of_another_fingerprint() -> None:
    snapshot = table(row(P), row(P, fingerprint=1), row(P, fingerprint=1))
    need = Need(phase=Phase.PREFILL, num_tokens=1, fingerprint=1, avoid=frozenset({1}))
    assert place(snapshot, need, "least_loaded", PickState()).row == 2


PREFERS = [
    # id                            rows                                              want
    ("however busy it is", [row(P), row(P, num_pending_prompt_tokens=9000)], 1),
    ("not when its queue is full", [row(P), row(P, num_prefilling=DEFAULT_MAX_QUEUED)], 0),
    ("nor when it takes no work", [row(P), row(P, draining=True)], 0),
    ("nor when it is lost", [row(P), row(P, alive=False)], 0),
    ("nor when it cannot hold it", [row(P), row(P, num_blocks=1)], 0),
    ("nor out of its role", [row(P), row(D)], 0),
    ("but for want of another", [row(R), row(D)], 1),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("rows", "want"), [c[1:] for c in PREFERS], ids=[c[0] for c in PREFERS])
def test_prefers_where_the_prompt_is(rows: list[dict[str, Any]], want: int, policy: str) -> None:
    need = Need(phase=Phase.PREFILL, num_tokens=100, prefer=1)
    assert place(table(*rows), need, policy, PickState()).row == want


def test_who_failed_the_request_is_not_preferred() -> None:
    need = Need(phase=Phase.PREFILL, num_tokens=1, prefer=1, avoid=frozenset({1}))
    assert place(table(row(P), row(P)), need, "least_loaded", PickState()).row == 0


REFUSALS = [
    ("nobody known", [], NoInstance),
    ("all dead", [row(P, alive=False), row(D, alive=False)], NoInstance),
    ("all draining", [row(P, draining=True)], NoInstance),
    ("all full", [row(P, num_prefilling=DEFAULT_MAX_QUEUED)], Saturated),
    ("all too small", [row(P, num_blocks=1)], Saturated),
]


@pytest.mark.parametrize(("rows", "error"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusals(rows: list[dict[str, Any]], error: type[Exception]) -> None:
    snapshot = table(*rows) if rows else _empty()
    with pytest.raises(error):
        place(snapshot, Need(phase=Phase.PREFILL, num_tokens=100), "least_loaded", PickState())


def _empty() -> Table:
    full = table(row(P))
    return Table(**{name: getattr(full, name)[:0] for name in ("role", *DEFAULTS)})


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.integers(0, 3),
            "fingerprint": st.integers(0, 1),
            "alive": st.booleans(),
            "draining": st.booleans(),
            "num_prefilling": st.sampled_from([0, 3, DEFAULT_MAX_QUEUED]),
            "num_pending_prompt_tokens": st.integers(0, 5000),
            "num_incoming": st.sampled_from([0, 3, DEFAULT_MAX_QUEUED]),
            "num_decoding": st.integers(0, 64),
            "num_free_blocks": st.integers(0, 100),
        }
    ),
    min_size=1,
    max_size=8,
)


@given(
    rows=ROWS,
    phase=st.sampled_from(Phase),
    policy=st.sampled_from(POLICIES),
    fingerprint=st.none() | st.integers(0, 1),
    avoid=st.frozensets(st.integers(0, 7)),
    num_picks=st.integers(0, 100),
)
def test_laws(
    rows: list[dict[str, Any]],
    phase: Phase,
    policy: str,
    fingerprint: int | None,
    avoid: frozenset[int],
    num_picks: int,
) -> None:
    snapshot = table(*rows)
    need = Need(phase=phase, num_tokens=10, fingerprint=fingerprint, avoid=avoid)
    able = [i for i, r in enumerate(rows) if _is_able(r, i, need)]
    try:
        decision = place(snapshot, need, policy, PickState(5, num_picks))
    except NoInstance:
        assert not able
        return
    except Saturated:
        waiting = "num_prefilling" if phase is Phase.PREFILL else "num_incoming"
        assert able
        assert all(rows[i][waiting] >= DEFAULT_MAX_QUEUED for i in able)
        return
    assert decision.row in able
    assert decision.reasons
    # Same snapshot, same state: same decision.
    assert place(snapshot, need, policy, PickState(5, num_picks)) == decision


def _is_able(values: dict[str, Any], index: int, need: Need) -> bool:
    return (
        values["alive"]
        and not values["draining"]
        and values["role"] != R
        and need.fingerprint in (None, values["fingerprint"])
        and index not in need.avoid
    )
