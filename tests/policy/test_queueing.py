"""DistServe's closed forms and Splitwise's sizing arithmetic, to the printed digit."""

import pytest

from policy.queueing import inter_op_ttft_s, intra_op_ttft_s, single_ttft_s
from policy.sizing import DGX_A100, DGX_H100, DGX_H100_CAPPED, equal_cost, equal_power

D, K = 0.1, 1.5
TTFT = [
    # rate, single, inter-op, intra-op
    (1.0, 0.105556, 0.101316, 0.069048),
    (5.0, 0.150000, 0.108333, 0.083333),
    (8.0, 0.300000, 0.116667, 0.104762),
]


@pytest.mark.parametrize(("rate", "single", "inter", "intra"), TTFT)
def test_check_values(rate: float, single: float, inter: float, intra: float) -> None:
    assert round(single_ttft_s(D, rate), 6) == single
    assert round(inter_op_ttft_s(D, rate), 6) == inter
    assert round(intra_op_ttft_s(D, rate, K), 6) == intra


def test_intra_op_wins_at_low_rates_and_inter_op_at_high_ones() -> None:
    gains = [inter_op_ttft_s(D, r) - intra_op_ttft_s(D, r, K) for r in (0.1, 5.0, 12.0, 14.0)]
    assert gains[0] > 0 > gains[-1]
    assert gains == sorted(gains, reverse=True)


def test_an_idle_queue_takes_the_service_time() -> None:
    assert single_ttft_s(D, 0.0) == inter_op_ttft_s(D, 0.0) == D
    assert intra_op_ttft_s(D, 0.0, K) == D / K


def test_a_queue_that_only_grows_has_no_mean() -> None:
    with pytest.raises(AssertionError, match="never end"):
        single_ttft_s(D, 10.0)


SIZES = [
    # what, got, published
    ("as much power as 40 H100", equal_power(DGX_A100, of=DGX_H100, num=40), 70),
    ("as much cost as 40 H100", equal_cost(DGX_A100, of=DGX_H100, num=40), 86),
    ("25 H100 read, the rest is A100, by power", equal_power(DGX_A100, of=DGX_H100, num=15), 26),
    ("30 H100 read, the rest is A100, by cost", equal_cost(DGX_A100, of=DGX_H100, num=10), 21),
    ("25 read, the rest is capped", equal_power(DGX_H100_CAPPED, of=DGX_H100, num=15), 21),
    ("35 read, the rest is capped", equal_power(DGX_H100_CAPPED, of=DGX_H100, num=5), 7),
]


@pytest.mark.parametrize(("got", "want"), [c[1:] for c in SIZES], ids=[c[0] for c in SIZES])
def test_sizing_as_published(got: int, want: int) -> None:
    assert got == want
