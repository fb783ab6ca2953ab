"""Clocks never go back."""

import pytest

from core.clock import ManualClock, MonotonicClock


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert (clock.now_s(), clock.now_s()) == (5.0, 5.0)
    clock.advance(1.5)
    clock.advance(0.0)
    assert clock.now_s() == 6.5


def test_a_manual_clock_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match=r"go back by 0\.5 s"):
        ManualClock().advance(-0.5)


def test_the_hosts_clock_never_goes_back() -> None:
    moments = [MonotonicClock().now_s() for _ in range(100)]
    assert moments == sorted(moments)
