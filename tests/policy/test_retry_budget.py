"""The budget: any one failure is within it, and an outage is not multiplied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.retry_budget import (
    NUM_PER_RUNNING,
    NUM_PER_S,
    SHARE_OF_FIRST,
    SLOT_S,
    WINDOW_S,
    RecentCount,
    RetryBudget,
)

ONCE = [
    # id, first placements a moment ago, retries, running, left
    ("nothing happened", 0, 0, 0, 100),
    ("a fifth of the first", 50, 0, 0, 110),
    ("two for each that runs", 0, 0, 256, 612),
    ("one instance with 256 died", 256, 256, 256, 407),
    ("used up", 0, 100, 0, 0),
    ("more than used up", 0, 150, 0, 0),
]


@pytest.mark.parametrize(
    ("first", "retries", "running", "want"), [c[1:] for c in ONCE], ids=[c[0] for c in ONCE]
)
def test_what_is_left(first: int, retries: int, running: int, want: int) -> None:
    budget = RetryBudget()
    for again, num in ((False, first), (True, retries)):
        for _ in range(num):
            budget.placed(0.0, again=again)
    assert budget.num_left(0.0, running) == want


def test_ten_seconds_later_all_is_back() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.placed(0.0, again=True)
    assert budget.num_left(WINDOW_S - 0.01, 0) == 0
    assert budget.num_left(WINDOW_S, 0) == 100


@given(pauses_s=st.lists(st.floats(0, 2), max_size=200))
def test_a_count_forgets_nothing_too_early_and_little_too_late(pauses_s: list[float]) -> None:
    count, now_s, moments = RecentCount(), 0.0, list[float]()
    for pause_s in pauses_s:
        now_s += pause_s
        count.add(now_s)
        moments.append(now_s)
        got = count.at(now_s)
        recent = sum(now_s - at_s < WINDOW_S - SLOT_S for at_s in moments)
        assert recent <= got <= sum(now_s - at_s < WINDOW_S for at_s in moments)


@given(num_running=st.integers(1, 256), tries_per_s=st.integers(10, 400))
def test_an_outage_is_not_multiplied(num_running: int, tries_per_s: int) -> None:
    """Whatever fails, and however fast: over a minute no more than the three terms."""
    budget, num_done = RetryBudget(), 0
    num_s = 60
    for tick in range(num_s * 10):
        now_s = tick / 10
        for _ in range(tries_per_s // 10):
            if budget.num_left(now_s, num_running):
                budget.placed(now_s, again=True)
                num_done += 1
    per_window = NUM_PER_S * WINDOW_S + NUM_PER_RUNNING * num_running
    assert num_done <= per_window * (num_s / WINDOW_S + 1)
    assert num_done >= min(tries_per_s // 10 * 10 * num_s, per_window)
    assert SHARE_OF_FIRST < 1
