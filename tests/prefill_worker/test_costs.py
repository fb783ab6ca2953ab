"""When fetching KV is cheaper than computing it, and what that rests on."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.costs import (
    FETCH_BYTES_PER_S,
    FETCH_FIXED_S,
    MeasuredCosts,
    is_fetch_cheaper,
)


@dataclass(frozen=True)
class Known:
    """Costs that are what they are."""

    compute_s_per_token: float
    fetch_fixed_s: float
    fetch_s_per_byte: float

    def compute_s(self, num_tokens: int) -> float:
        """See Costs."""
        return num_tokens * self.compute_s_per_token

    def fetch_s(self, num_bytes: int) -> float:
        """See Costs."""
        return self.fetch_fixed_s + num_bytes * self.fetch_s_per_byte

    def computed(self, num_tokens: int, seconds: float) -> None:
        """See Costs."""

    def fetched(self, num_bytes: int, seconds: float) -> None:
        """See Costs."""

    def not_fetched(self) -> None:
        """See Costs."""


CASES = [
    # id                          s/token, fixed s, s/byte, tokens, bytes/token, fetch?
    ("a long prompt, quick link", 1e-3, 1e-2, 1e-9, 1000, 1000, True),
    ("a short one",               1e-3, 1e-2, 1e-9,    8, 1000, False),
    ("a slow link",               1e-3, 1e-2, 1e-6, 1000, 1000, False),
    ("a quick engine",            1e-6, 1e-2, 1e-9, 1000, 1000, False),
    ("equally dear",              1e-3, 0.0,  1e-6, 1000, 1000, False),
    ("computing not known yet",   0.0,  1e-2, 1e-9, 1000, 1000, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("per_token_s", "fixed_s", "per_byte_s", "num_tokens", "token_bytes", "want"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_which_is_cheaper(
    per_token_s: float,
    fixed_s: float,
    per_byte_s: float,
    num_tokens: int,
    token_bytes: int,
    want: bool,
) -> None:
    costs = Known(per_token_s, fixed_s, per_byte_s)
    num_bytes = num_tokens * token_bytes
    assert is_fetch_cheaper(costs, num_tokens=num_tokens, num_bytes=num_bytes) is want


def test_before_anything_is_measured() -> None:
    costs = MeasuredCosts()
    assert costs.compute_s(1000) == 0.0
    assert costs.fetch_s(0) == FETCH_FIXED_S
    assert costs.fetch_s(200_000_000) == pytest.approx(FETCH_FIXED_S + 200e6 / FETCH_BYTES_PER_S)


@given(rate=st.floats(1e-6, 1.0), steps=st.lists(st.integers(1, 512), min_size=1, max_size=30))
def test_a_steady_rate_is_found(rate: float, steps: list[int]) -> None:
    costs = MeasuredCosts()
    for num_tokens in steps:
        costs.computed(num_tokens, num_tokens * rate)
    assert costs.compute_s(100) == pytest.approx(100 * rate)


def test_large_steps_weigh_more_than_small_ones() -> None:
    costs = MeasuredCosts()
    costs.computed(256, 0.256)
    costs.computed(1, 0.1)
    assert costs.compute_s(1000) < 2.0


def test_a_link_that_was_slow_once_is_tried_again() -> None:
    costs = MeasuredCosts()
    good_s = costs.fetch_s(1_000_000)
    costs.fetched(1_000_000_000, 1000.0)
    assert costs.fetch_s(1_000_000) > 10 * good_s
    for _ in range(200):
        costs.not_fetched()
    assert costs.fetch_s(1_000_000) == pytest.approx(good_s, rel=1e-3)
