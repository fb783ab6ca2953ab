"""The window: what routers told, in order of arrival, behind now by as long as answers take."""

from dataclasses import replace

import numpy as np
import pytest

from core.slo import Moments, Slo, attainment
from planner.online.window import MAX_LAG_SHARE, MIN_LAG_SHARE, NOT_OFFERED, Ended, Recent, Window
from tests.planner.online.made import even, recent

SLO = Slo(ttft_s=0.5, tpot_s=0.05)


def ended(at_s: float, *, ttft_s: float = 0.1, status: str = "OK", prompt: int = 10) -> Ended:
    return Ended(at_s, prompt, 4, 5, ttft_s, 0.01, status)


def window(*rows: Ended, now_s: float = 100.0, max_kept: int = 1000) -> Window:
    made = Window(window_s=50.0, began_at_s=0.0, max_kept=max_kept)
    made.add(rows, now_s=now_s)
    return made


def test_it_slides_and_ends_a_little_before_now() -> None:
    seen = window(*(ended(float(at)) for at in range(100))).recent(100.0)
    lag_s = MIN_LAG_SHARE * 50.0
    assert (seen.begin_s, seen.end_s) == (50.0 - lag_s, 100.0 - lag_s)
    assert seen.at_s.tolist() == [float(at) for at in range(49, 99)]
    assert seen.rate_per_s == 1.0


def test_it_waits_for_answers_that_take_long() -> None:
    seen = window(*(ended(float(at), ttft_s=12.0) for at in range(100))).recent(100.0)
    assert seen.end_s == pytest.approx(100.0 - 12.04)
    hung = window(*(ended(float(at), ttft_s=1e6) for at in range(100))).recent(100.0)
    assert hung.end_s == 100.0 - MAX_LAG_SHARE * 50.0, "but not for ever"


def test_before_it_is_full_it_is_as_long_as_it_was_fed() -> None:
    made = Window(window_s=50.0, began_at_s=90.0)
    made.add([ended(80.0), ended(95.0)], now_s=100.0)
    seen = made.recent(100.0)
    assert (seen.begin_s, seen.num_requests) == (90.0, 1)


def test_routers_are_one_list() -> None:
    made = window(ended(70.0), ended(80.0))
    made.add([ended(75.0), ended(65.0)], now_s=100.0)
    assert made.recent(100.0).at_s.tolist() == [65.0, 70.0, 75.0, 80.0]


def test_one_that_ends_late_is_put_where_it_came() -> None:
    made = window(ended(70.0), ended(80.0))
    made.add([ended(75.0)], now_s=110.0)
    assert made.recent(110.0).at_s.tolist() == [70.0, 75.0, 80.0]


@pytest.mark.parametrize("num", [999, 5000, 50_000])
def test_it_is_bounded_and_then_shorter(num: int) -> None:
    at_s = np.linspace(51.0, 99.0, num)
    seen = window(*(ended(at) for at in at_s), max_kept=1000).recent(100.0)
    assert seen.num_requests <= 1000
    assert seen.num_requests / seen.span_s == pytest.approx(num / 48.0, rel=0.05)


def test_missed_ones_count_as_arrivals() -> None:
    made = window(ended(70.0))
    made.add([ended(90.0)], num_missed=8, since_s=80.0, now_s=100.0)
    seen = made.recent(100.0)
    assert (seen.num_requests, int(seen.is_ok.sum())) == (10, 2)
    assert seen.computed_tokens.tolist() == [6, 6], "whose lengths nobody knows"


STATUSES = [
    # status               offered  is an answer
    ("OK", True, True),
    ("RESOURCE_EXHAUSTED", True, False),
    ("UNAVAILABLE", True, False),
    ("DEADLINE_EXCEEDED", True, False),
    ("CANCELLED", True, False),
    *((status, False, False) for status in sorted(NOT_OFFERED)),
]


@pytest.mark.parametrize(("status", "offered", "is_ok"), STATUSES, ids=[c[0] for c in STATUSES])
def test_what_is_load_and_what_is_an_answer(status: str, offered: bool, is_ok: bool) -> None:
    seen = window(ended(80.0), ended(90.0, status=status)).recent(100.0)
    assert seen.num_requests == 1 + offered
    assert len(seen.output_tokens) == 1 + is_ok


def test_cached_tokens_of_a_prompt_are_not_computed() -> None:
    assert (
        recent(even(1.0, 10.0), 100, 5, span_s=10.0, hits=40).computed_tokens.tolist() == [60] * 10
    )


@pytest.mark.parametrize("slo", [SLO, Slo(ttft_s=0.2), Slo(e2e_s=0.3), Slo()])
def test_attainment_is_that_of_core(slo: Slo) -> None:
    rng = np.random.default_rng(3)
    num = 500
    made = recent(even(50.0, 10.0), 100, rng.integers(1, 60, num), span_s=10.0)
    seen = replace(
        made,
        ttft_s=rng.exponential(0.3, num),
        tpot_s=np.where(made.num_output_tokens > 1, rng.exponential(0.03, num), 0.0),
        is_ok=rng.random(num) < 0.9,
    )
    assert seen.attainment(slo) == pytest.approx(attainment(slo, map(moments_of, rows(seen))))


def rows(seen: Recent) -> list[tuple[bool, float, float, int]]:
    columns = (seen.is_ok, seen.ttft_s, seen.tpot_s, seen.num_output_tokens)
    return list(zip(*(each.tolist() for each in columns), strict=True))


def moments_of(row: tuple[bool, float, float, int]) -> Moments | None:
    is_ok, ttft_s, tpot_s, num = row
    if not is_ok:
        return None
    return Moments(
        arrived_at_s=0.0,
        first_token_at_s=ttft_s,
        last_token_at_s=ttft_s + tpot_s * (num - 1),
        num_output_tokens=num,
    )


def test_of_nothing_nothing_missed() -> None:
    assert window().recent(100.0).attainment(SLO) == 1.0
