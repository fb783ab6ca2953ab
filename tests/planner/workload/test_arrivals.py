"""Moments: their mean rate and spread, that they are sorted, and that rates only stretch them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from planner.workload.arrivals import (
    PROCESSES,
    Arrivals,
    Gaps,
    Piece,
    Pieces,
    Replay,
    Then,
    parse_arrivals,
)
from planner.workload.columns import trace_of
from planner.workload.trace import TraceRow
from policy.table import Floats


def replay(*at_s: float) -> Replay:
    rows = [TraceRow(at_s=each, num_prompt_tokens=8, num_output_tokens=2) for each in at_s]
    return Replay(trace=trace_of(rows))


def pieces(
    *pairs: tuple[float, float], then: Then = Then.AGAIN, process: str = "constant"
) -> Pieces:
    return Pieces(
        pieces=tuple(Piece(duration_s=duration, rate_per_s=rate) for duration, rate in pairs),
        then=then,
        gaps=Gaps(process=process),
    )


def moments(arrivals: Arrivals, num: int, rate_per_s: float, seed: int = 0) -> Floats:
    return arrivals.at_s(np.random.default_rng(seed), num, rate_per_s)


GAPS = [
    # process    burstiness  coefficient of variation
    ("poisson", 1.0, 1.0),
    ("gamma", 1.0, 1.0),
    ("gamma", 0.25, 2.0),
    ("gamma", 4.0, 0.5),
    ("constant", 1.0, 0.0),
]


@pytest.mark.parametrize(("process", "burstiness", "want"), GAPS)
def test_gaps_have_the_mean_and_the_spread_asked_for(
    process: str, burstiness: float, want: float
) -> None:
    at_s = moments(Gaps(process=process, burstiness=burstiness), 200_000, 5.0)
    gaps_s = np.diff(at_s, prepend=0.0)
    # Four standard errors of the mean.
    assert gaps_s.mean() == pytest.approx(0.2, rel=4 * want / 200_000**0.5, abs=1e-9)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(want, rel=0.02, abs=1e-6)


EXACT = [
    # id                      arrivals                                   rate   moments
    ("constant", Gaps(process="constant"), 2.0, [0.5, 1, 1.5, 2, 2.5]),
    ("as said", pieces((2, 1), (1, 3)), 5 / 3, [1, 2, 7 / 3, 8 / 3, 3, 4, 5, 16 / 3]),
    ("twice the rate", pieces((2, 1), (1, 3)), 10 / 3, [0.5, 1, 1.5, 2, 13 / 6, 14 / 6, 15 / 6]),
    ("a pause", pieces((1.1, 2), (2, 0)), 2.2 / 3.1, [0.5, 1.0, 3.5, 4.0, 6.5]),
    ("a pause first", pieces((2, 0), (1.1, 2)), 2.2 / 3.1, [2.5, 3.0, 5.5, 6.0, 8.5]),
    ("held", pieces((1, 1), (1, 4), then=Then.HOLD), 2.5, [1, 1.25, 1.5, 1.75, 2, 2.25, 2.5]),
    ("held alone", pieces((1, 4), then=Then.HOLD), 2.0, [0.5, 1, 1.5]),
    ("as recorded", replay(0, 1, 4, 10), 0.3, [0, 1, 4, 10]),
    ("fast", replay(0, 1, 4, 10), 0.6, [0, 0.5, 2, 5]),
    # The mean gap is 10 s / 3: so much later than the last one it begins anew.
    ("again", replay(0, 1, 4, 10), 0.3, [0, 1, 4, 10, 40 / 3, 43 / 3, 52 / 3, 70 / 3, 80 / 3]),
]


@pytest.mark.parametrize(
    ("arrivals", "rate_per_s", "want"), [c[1:] for c in EXACT], ids=[c[0] for c in EXACT]
)
def test_moments(arrivals: Arrivals, rate_per_s: float, want: list[float]) -> None:
    assert list(moments(arrivals, len(want), rate_per_s)) == pytest.approx(want)


@pytest.mark.parametrize("then", Then)
def test_rates_that_change(then: Then) -> None:
    arrivals = pieces((100.0, 20.0), (50.0, 80.0), then=then, process="poisson")
    at_s = moments(arrivals, 10_000, 40.0)
    in_first = int((at_s < 100.0).sum())
    in_second = int(((at_s >= 100.0) & (at_s < 150.0)).sum())
    assert in_first == pytest.approx(2000, abs=4 * 2000**0.5)
    assert in_second == pytest.approx(4000, abs=4 * 4000**0.5)
    after = int(((at_s >= 150.0) & (at_s < 200.0)).sum())
    want = 1000 if then is Then.AGAIN else 4000
    assert after == pytest.approx(want, abs=4 * want**0.5)


ALL = [
    *(Gaps(process=process, burstiness=0.5) for process in PROCESSES),
    pieces((2, 1), (1, 3), process="gamma"),
    pieces((2, 5), (1, 0), (1, 1), then=Then.HOLD, process="poisson"),
    replay(0, 0, 1, 4, 4.5, 10),
]


@given(
    st.sampled_from(ALL),
    st.integers(0, 2**40),
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0.01, 1e4),
)
def test_laws(arrivals: Arrivals, seed: int, num: int, more: int, rate_per_s: float) -> None:
    at_s = moments(arrivals, num, rate_per_s, seed)
    assert (at_s >= 0).all()
    assert (np.diff(at_s) >= 0).all()
    longer = moments(arrivals, num + more, rate_per_s, seed)
    assert (longer[:num] == at_s).all()
    if not isinstance(arrivals, Pieces):  # of which times stay
        assert moments(arrivals, num, 2 * rate_per_s, seed) * 2 == pytest.approx(at_s)


@pytest.mark.parametrize("arrivals", [each for each in ALL if not isinstance(each, Pieces)])
@pytest.mark.parametrize("rate_per_s", [0.5, 40.0])
def test_the_mean_rate_of_a_long_run_is_the_one_asked_for(
    arrivals: Arrivals, rate_per_s: float
) -> None:
    num = 60_000
    assert num / moments(arrivals, num, rate_per_s)[-1] == pytest.approx(rate_per_s, rel=0.03)


def test_the_mean_rate_over_many_rounds_is_the_one_asked_for() -> None:
    arrivals = pieces((2, 1), (1, 3), process="poisson")
    assert 60_000 / moments(arrivals, 60_000, 40.0)[-1] == pytest.approx(40.0, rel=0.03)


NATURAL = [(Gaps(), None), (pieces((2, 1), (1, 3)), 5 / 3), (replay(0, 1, 4, 10), 0.3)]


@pytest.mark.parametrize(("arrivals", "want"), NATURAL)
def test_natural_rates(arrivals: Arrivals, want: float | None) -> None:
    assert arrivals.natural_rate_per_s == pytest.approx(want)


PARSED = [
    ("poisson", Gaps()),
    ("constant", Gaps(process="constant")),
    ("gamma:0.25", Gaps(process="gamma", burstiness=0.25)),
    ("600:2,60:20.5", pieces((600, 2), (60, 20.5), process="poisson")),
    ("600:0,60:20,hold", pieces((600, 0), (60, 20), then=Then.HOLD, process="poisson")),
]


@pytest.mark.parametrize(("text", "want"), PARSED)
def test_texts(text: str, want: Arrivals) -> None:
    got = parse_arrivals("--arrivals", text)
    assert got == want
    assert str(got) == text


REFUSED = [
    # text                says
    ("", "must be poisson, constant, gamma:SHAPE, or"),
    ("gamma", "must be poisson"),
    ("poisson:2", "must be poisson"),
    ("gamma:0", "burstiness must be above 0"),
    ("gamma:nan", "burstiness must be above 0"),
    ("1:2:3", "must be poisson"),
    ("5:0", "need a rate above 0 at some time"),
    ("0:5", "need durations above 0"),
    ("5:-1,5:2", "rates of at least 0, got 5:-1"),
    ("5:inf", "rates of at least 0, got 5:inf"),
    ("5:1,5:0,hold", "end with a rate of 0, which cannot be held"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_texts_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"--arrivals.*{says}"):
        parse_arrivals("--arrivals", text)


def test_a_process_of_another_name() -> None:
    assert list(Gaps(process="uniform").problems()) == [
        "arrivals must be of poisson, gamma, constant, got 'uniform'"
    ]


def test_one_moment_is_no_rate() -> None:
    assert list(replay(0.0).problems()) == list(replay(0.0, 0.0).problems()) != []
    with pytest.raises(ConfigError, match="2 requests at one moment has no rate"):
        _ = replay(0.0, 0.0).natural_rate_per_s
