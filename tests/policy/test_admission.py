"""Admission: refused when hopeless, by table; and how many answers fit a TPOT target."""

from typing import Any

import numpy as np
import pytest

from policy.admission import Forecast, forecast, line_wait_s, num_free_answers, refusal
from policy.table import Ask
from tests.policy.fleets import MODEL, D, M, P, row, table

REFUSALS = [
    # id                               ttft alone  line  left target    refused by load, retry
    ("in time", 1.0, 0.1, 0.0, 10.0, 0.0, None),
    ("not before the deadline", 11.0, 0.1, 0.0, 10.0, 0.0, (True, 1.0)),
    ("not even alone", 11.0, 10.5, 0.0, 10.0, 0.0, (False, 0.0)),
    ("within the target", 0.8, 0.1, 0.0, 10.0, 1.0, None),
    ("forecasts err", 0.95, 0.1, 0.0, 10.0, 1.0, (True, 0.5)),
    ("the line counts", 0.8, 0.1, 2.1, 10.0, 1.0, (True, 2.0)),
    ("a long prompt is no load", 3.0, 2.0, 0.0, 10.0, 1.0, None),
    ("but it does not wait long either", 4.5, 2.0, 0.0, 10.0, 1.0, (True, 0.5)),
    ("nor past its deadline", 3.0, 2.0, 0.0, 2.5, 1.0, (True, 0.5)),
]


@pytest.mark.parametrize(
    ("ttft_s", "alone_s", "line_s", "left_s", "target_s", "want"),
    [c[1:] for c in REFUSALS],
    ids=[c[0] for c in REFUSALS],
)
def test_refusals(
    ttft_s: float,
    alone_s: float,
    line_s: float,
    left_s: float,
    target_s: float,
    want: tuple[bool, float] | None,
) -> None:
    got = refusal(Forecast(ttft_s, alone_s), line_s, left_s, target_s)
    told = None if got is None else (got.by_load, round(got.retry_after_s, 6))
    assert told == want


def ask(num_tokens: int, *hits: int) -> Ask:
    return Ask(num_tokens, 2 * num_tokens, np.array(hits), -1)


FORECASTS = [
    # id                             rows                                       ttft   alone
    ("nobody", [row(P, alive=False)], np.inf, np.inf),
    ("idle", [row(P)], 0.11, 0.11),
    ("decode does not count", [row(P, prefill_scale=2.0), row(D)], 0.22, 0.22),
    ("unless there is nobody else", [row(P, alive=False), row(D)], 0.11, 0.11),
    (
        "the best one",
        [row(P, num_pending_prompt_tokens=1000, num_prefilling=1), row(M)],
        0.11,
        0.11,
    ),
    (
        "behind others",
        [row(P, num_pending_prompt_tokens=1000, num_prefilling=1)],
        0.11 + 1.01 + 0.05,
        0.11,
    ),
]


@pytest.mark.parametrize(
    ("rows", "ttft_s", "alone_s"), [c[1:] for c in FORECASTS], ids=[c[0] for c in FORECASTS]
)
def test_forecasts(rows: list[dict[str, Any]], ttft_s: float, alone_s: float) -> None:
    snapshot = table(*rows)
    got = forecast(MODEL, snapshot, snapshot.alive, ask(100, *(0 for _ in rows)))
    assert got == pytest.approx((ttft_s, alone_s), rel=0.01)


def test_what_is_cached_takes_no_time() -> None:
    snapshot = table(row(P))
    assert forecast(MODEL, snapshot, snapshot.alive, ask(1000, 900)).ttft_s < 0.13


FREE = [
    # id                       rows                                           target   want
    ("idle", [row(D)], 0.1, 22),
    ("half of it", [row(D, num_decoding=8, num_context_tokens=2048, num_incoming=4)], 0.1, 10),
    ("twice as slow", [row(D, decode_scale=2.0)], 0.1, 9),
    ("always one", [row(D, decode_scale=100.0)], 0.1, 1),
    ("never less than none", [row(D, num_decoding=99, num_context_tokens=25_344)], 0.1, 0),
    ("of all", [row(D), row(M), row(P), row(D, alive=False)], 0.1, 44),
]


@pytest.mark.parametrize(
    ("rows", "target_s", "want"), [c[1:] for c in FREE], ids=[c[0] for c in FREE]
)
def test_free_answers(rows: list[dict[str, Any]], target_s: float, want: int) -> None:
    snapshot = table(*rows)
    assert num_free_answers(MODEL, snapshot, snapshot.alive, target_s) == want


def test_line_wait() -> None:
    assert line_wait_s(10, 4, 2.0) == 5.0
    assert line_wait_s(0, 0, 2.0) == 0.0
