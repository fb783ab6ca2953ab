"""Placement: filter, score and pick by table, then as laws over random snapshots."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import POLICIES
from core.errors import NoInstance, Saturated
from core.limits import DEFAULT_MAX_QUEUED
from policy.placement import MAX_OTHERS, Need, PickState, place
from policy.table import Phase, Weights
from router.placer import BACKGROUND_WORK
from tests.policy.fleets import ROWS, D, M, P, R, criteria, row, table

FULL = DEFAULT_MAX_QUEUED
EVERY = [
    # id                             phase          rows                                     want
    ("own role", Phase.DECODE, [row(P), row(D)], {1}),
    ("mixed is own of both", Phase.PREFILL, [row(D), row(M)], {1}),
    ("so is a helper", Phase.PREFILL, [row(D), row(D, helps=True)], {1}),
    ("another role rather than nobody", Phase.PREFILL, [row(D), row(D, alive=False)], {0}),
    ("dead ones are passed over", Phase.PREFILL, [row(P, alive=False), row(P)], {1}),
    ("so are draining ones", Phase.PREFILL, [row(P, draining=True), row(D)], {1}),
    ("and routers", Phase.PREFILL, [row(R), row(D)], {1}),
    ("too small ones are passed over", Phase.DECODE, [row(D, num_blocks=1), row(D)], {1}),
    (
        "full queues are passed over",
        Phase.DECODE,
        [row(D, num_incoming=FULL), row(D, num_decoding=500)],
        {1},
    ),
    ("a full own role yields to another", Phase.DECODE, [row(P), row(D, num_incoming=FULL)], {0}),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("phase", "rows", "want"), [c[1:] for c in EVERY], ids=[c[0] for c in EVERY]
)
def test_every_policy(
    phase: Phase, rows: list[dict[str, Any]], want: set[int], policy: str
) -> None:
    need = Need(phase=phase, num_tokens=100)
    got = {place(table(*rows), need, criteria(policy), PickState(0, n)).row for n in range(4)}
    assert got == want


LOADED = ("slo", "jsq", "prefix_aware", "power_of_two")
SCORED = [
    # id, policies, phase, rows, want
    (
        "fewest pending tokens",
        LOADED,
        Phase.PREFILL,
        [
            row(P, num_pending_prompt_tokens=900, num_prefilling=1),
            row(P, num_pending_prompt_tokens=800, num_prefilling=1),
        ],
        1,
    ),
    (
        "fewest requests waiting, whatever their length",
        ("shortest_queue",),
        Phase.PREFILL,
        [
            row(P, num_prefilling=2, num_pending_prompt_tokens=20),
            row(P, num_prefilling=1, num_pending_prompt_tokens=9000),
        ],
        1,
    ),
    (
        "the faster one, though it has more to do",
        ("slo",),
        Phase.PREFILL,
        [
            row(P, prefill_scale=4.0),
            row(P, num_pending_prompt_tokens=200, num_prefilling=1),
        ],
        1,
    ),
    (
        "fewest answers",
        ("slo", "shortest_queue", "prefix_aware", "power_of_two"),
        Phase.DECODE,
        [row(D, num_decoding=9), row(D, num_decoding=1, num_incoming=1)],
        1,
    ),
    (
        "fewest tokens of context, whatever the number of answers",
        ("jsq",),
        Phase.DECODE,
        [
            row(D, num_decoding=1, num_context_tokens=9000),
            row(D, num_decoding=5, num_context_tokens=500),
        ],
        1,
    ),
    (
        "of equals the one with more room",
        ("slo", "shortest_queue", "prefix_aware", "power_of_two"),
        Phase.DECODE,
        [row(D, num_free_blocks=50), row(D, num_free_blocks=90)],
        1,
    ),
    (
        "one with room, though its steps are longer",
        ("slo",),
        Phase.DECODE,
        [
            row(D, num_decoding=8, num_free_blocks=0, num_context_tokens=1000),
            row(D, num_decoding=9, num_context_tokens=1000),
        ],
        1,
    ),
    (
        "of equals the one on the host of the KV",
        ("slo",),
        Phase.DECODE,
        [row(D, host=1), row(D, host=0), row(P, host=0)],
        1,
    ),
]


@pytest.mark.parametrize(
    ("policy", "phase", "rows", "want"),
    [(policy, *c[2:]) for c in SCORED for policy in c[1]],
    ids=[f"{policy}: {c[0]}" for c in SCORED for policy in c[1]],
)
def test_scores(policy: str, phase: Phase, rows: list[dict[str, Any]], want: int) -> None:
    source = next((i for i, r in enumerate(rows) if phase is Phase.DECODE and r["role"] == P), None)
    need = Need(phase=phase, num_tokens=100, num_input_tokens=90, source=source)
    got = {place(table(*rows), need, criteria(policy), PickState(0, n)).row for n in range(4)}
    assert got == {want}


@pytest.mark.parametrize("policy", ["slo", "prefix_aware"])
def test_where_the_prompt_is_cached(policy: str) -> None:
    busy = row(P, num_pending_prompt_tokens=300, num_prefilling=1)
    need = Need(
        phase=Phase.PREFILL, num_tokens=1100, num_input_tokens=1000, hit_tokens=np.array([800, 0])
    )
    assert place(table(busy, row(P)), need, criteria(policy), PickState()).row == 0
    none = need._replace(hit_tokens=None)
    assert place(table(busy, row(P)), none, criteria(policy), PickState()).row == 1


@pytest.mark.parametrize(("work", "want"), [(1.0, 1), (BACKGROUND_WORK, 0)])
def test_background_work_goes_where_it_costs_least(work: float, want: int) -> None:
    """It would be sooner elsewhere, where its prefix would be computed once more."""
    busy = row(P, num_pending_prompt_tokens=3000, num_prefilling=8)
    need = Need(
        phase=Phase.PREFILL, num_tokens=1100, num_input_tokens=1000, hit_tokens=np.array([900, 0])
    )
    by = replace(criteria("slo"), weights=Weights(work=work))
    assert place(table(busy, row(P)), need, by, PickState()).row == want


LOCAL = [
    # id                                      tokens  limit  prefill row       decode row   want
    ("off", 40, 0, row(P), row(D), 0),
    ("idle and short: no handoff", 3, 64, row(P), row(D), 1),
    ("not while answers would stand still", 40, 64, row(P), row(D, num_decoding=3), 0),
    (
        "unless the queue is longer than that",
        40,
        64,
        row(P, num_prefilling=4, num_pending_prompt_tokens=4000),
        row(D, num_decoding=3),
        1,
    ),
    (
        "never a long one",
        65,
        64,
        row(P, num_prefilling=4, num_pending_prompt_tokens=4000),
        row(D),
        0,
    ),
]


@pytest.mark.parametrize(
    ("num_tokens", "limit", "prefill", "decode", "want"),
    [c[1:] for c in LOCAL],
    ids=[c[0] for c in LOCAL],
)
def test_a_decode_instance_reads_what_is_cheaper_there(
    num_tokens: int, limit: int, prefill: dict[str, Any], decode: dict[str, Any], want: int
) -> None:
    need = Need(phase=Phase.PREFILL, num_tokens=1000, num_input_tokens=num_tokens)
    by = criteria("slo", max_local_prefill_tokens=limit)
    assert place(table(prefill, decode), need, by, PickState()).row == want


def test_what_it_caches_is_not_counted() -> None:
    need = Need(
        phase=Phase.PREFILL, num_tokens=1000, num_input_tokens=900, hit_tokens=np.array([0, 880])
    )
    by = criteria("slo", max_local_prefill_tokens=64)
    assert place(table(row(P), row(D, num_decoding=3)), need, by, PickState()).row == 1


@pytest.mark.parametrize("policy", [p for p in POLICIES if p not in ("random", "power_of_two")])
def test_equals_take_turns(policy: str) -> None:
    snapshot, state = table(row(P), row(P), row(P)), PickState()
    got = []
    for _ in range(6):
        decision = place(snapshot, Need(phase=Phase.PREFILL, num_tokens=1), criteria(policy), state)
        state = decision.state
        got.append(decision.row)
    assert got == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("policy", ["random", "power_of_two"])
def test_drawn_ones_come_all(policy: str) -> None:
    snapshot = table(row(P), row(P), row(P))
    need = Need(phase=Phase.PREFILL, num_tokens=1)
    got = [place(snapshot, need, criteria(policy), PickState(3, n)).row for n in range(300)]
    assert min(got.count(i) for i in range(3)) > 50


def test_power_of_two_takes_the_less_loaded_of_its_two() -> None:
    loads = [row(P, num_pending_prompt_tokens=n) for n in (3, 2, 1, 0)]
    need = Need(phase=Phase.PREFILL, num_tokens=1)
    got = [
        place(table(*loads), need, criteria("power_of_two"), PickState(3, n)).row
        for n in range(600)
    ]
    # Of 12 ordered pairs the last row is in 6, the third wins in 4, the second in 2.
    assert got.count(0) == 0
    assert got.count(3) > got.count(2) > got.count(1) > 0


def test_avoided_and_of_another_fingerprint() -> None:
    snapshot = table(row(P), row(P, fingerprint=1), row(P, fingerprint=1))
    need = Need(phase=Phase.PREFILL, num_tokens=1, fingerprint=1, avoid=frozenset({1}))
    assert place(snapshot, need, criteria("slo"), PickState()).row == 2


def test_only_instances_of_the_model() -> None:
    snapshot = table(row(P), row(P, model=1))
    need = Need(phase=Phase.PREFILL, num_tokens=1, model=1)
    assert place(snapshot, need, criteria("slo"), PickState()).row == 1


PREFERS = [
    # id                            rows                                              want
    ("however busy it is", [row(P), row(P, num_pending_prompt_tokens=9000)], 1),
    ("not when its queue is full", [row(P), row(P, num_prefilling=FULL)], 0),
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
    assert place(table(*rows), need, criteria(policy), PickState()).row == want


def test_who_failed_the_request_is_not_preferred() -> None:
    need = Need(phase=Phase.PREFILL, num_tokens=1, prefer=1, avoid=frozenset({1}))
    assert place(table(row(P), row(P)), need, criteria("slo"), PickState()).row == 0


REFUSALS = [
    ("nobody known", [], NoInstance),
    ("all dead", [row(P, alive=False), row(D, alive=False)], NoInstance),
    ("all draining", [row(P, draining=True)], NoInstance),
    ("all full", [row(P, num_prefilling=FULL)], Saturated),
    ("all too small", [row(P, num_blocks=1)], Saturated),
]


@pytest.mark.parametrize(("rows", "error"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusals(rows: list[dict[str, Any]], error: type[Exception]) -> None:
    with pytest.raises(error):
        place(table(*rows), Need(phase=Phase.PREFILL, num_tokens=100), criteria("slo"), PickState())


@given(
    rows=ROWS,
    phase=st.sampled_from(Phase),
    policy=st.sampled_from(POLICIES),
    fingerprint=st.none() | st.integers(0, 1),
    avoid=st.frozensets(st.integers(0, 7)),
    num_picks=st.integers(0, 100),
    limit=st.sampled_from([0, 64]),
)
def test_laws(
    rows: list[dict[str, Any]],
    phase: Phase,
    policy: str,
    fingerprint: int | None,
    avoid: frozenset[int],
    num_picks: int,
    limit: int,
) -> None:
    """Never a dead, drained, full or foreign instance; pure; refused only if nobody can."""
    snapshot = table(*rows)
    before = [column.copy() for column in snapshot]
    need = Need(phase=phase, num_tokens=10, fingerprint=fingerprint, avoid=avoid)
    by = criteria(policy, max_local_prefill_tokens=limit)
    able = [i for i, r in enumerate(rows) if _is_able(r, i, need)]
    waiting = "num_prefilling" if phase is Phase.PREFILL else "num_incoming"
    try:
        decision = place(snapshot, need, by, PickState(5, num_picks))
    except NoInstance:
        assert not able
        return
    except Saturated:
        assert able
        assert all(rows[i][waiting] >= FULL for i in able)
        return
    assert decision.row in able
    assert rows[decision.row][waiting] < FULL
    assert decision.reasons
    # Same snapshot, same state: same decision; and nothing was written.
    assert place(snapshot, need, by, PickState(5, num_picks)) == decision
    assert all((a == b).all() for a, b in zip(before, snapshot, strict=True))


def _is_able(values: dict[str, Any], index: int, need: Need) -> bool:
    return (
        values["alive"]
        and not values["draining"]
        and values["role"] != R
        and need.fingerprint in (None, values["fingerprint"])
        and index not in need.avoid
    )


@pytest.mark.parametrize("num_rows", [1, 2, MAX_OTHERS + 1, 9])
def test_tells_who_came_next(num_rows: int) -> None:
    """Best first, never the winner, never one that could not have been picked."""
    rows = [row(P, num_pending_prompt_tokens=1000 - 10 * i) for i in range(num_rows)]
    need = Need(phase=Phase.PREFILL, num_tokens=10)
    decision = place(table(row(P, alive=False), *rows), need, criteria("jsq"), PickState())
    assert decision.row == num_rows
    want = list(range(num_rows - 1, 0, -1))[:MAX_OTHERS]
    assert [other for other, _ in decision.others] == want
    scores = [score for _, score in decision.others]
    assert scores == sorted(scores)
