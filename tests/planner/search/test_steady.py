"""What one run says, and what several do."""

from math import inf

import numpy as np
import pytest

from core.slo import Slo
from planner.search.judges import Joint, Marginal, Promise, only
from planner.search.steady import Sample, Trend, Window, grows, judgement, sample
from tests.planner.search.fakes import CHAT, outcome_of

ALL = Window(warm_up=0.0, cool_down=0.0)

WINDOWS = [
    # warm-up  cool-down  requests  first, end
    (0.2, 0.1, 100, (20, 90)),
    (0.0, 0.0, 100, (0, 100)),
    (0.2, 0.1, 1, (0, 1)),
    (0.5, 0.5, 3, (2, 3)),
]


@pytest.mark.parametrize(("warm_up", "cool_down", "num", "bounds"), WINDOWS)
def test_windows(warm_up: float, cool_down: float, num: int, bounds: tuple[int, int]) -> None:
    assert Window(warm_up=warm_up, cool_down=cool_down).bounds(num) == bounds


def test_warm_up_and_last_requests_do_not_count() -> None:
    late = [9.0] * 20 + [0.1] * 70 + [9.0] * 10
    got = sample(outcome_of(late, [0.01] * 100), Joint(classes=(CHAT,)), Window())
    assert got.num_hits[0] == got.num_all[0] == 70


def test_two_independent_shares_of_90_percent_are_one_of_81() -> None:
    num = 100
    ttft_s = [9.0 if i % 10 == 0 else 0.1 for i in range(num)]
    tpot_s = [9.0 if i // 10 == 0 else 0.01 for i in range(num)]
    outcome = outcome_of(ttft_s, tpot_s)
    joint = sample(outcome, Joint(classes=(CHAT,)), ALL)
    marginal = sample(outcome, Marginal(slo=CHAT.slo), ALL)
    assert joint.num_hits == (81, 90, 90)  # joint, then who keeps TTFT and who TPOT
    assert marginal.num_hits == (90, 90)


def test_each_class_is_judged_by_its_own_limits_and_target() -> None:
    fast = Promise(name="fast", slo=Slo(ttft_s=0.2), target=0.5)
    slow = Promise(name="slow", slo=Slo(ttft_s=2.0), target=0.99)
    outcome = outcome_of([0.1, 1.0, 0.3, 1.0], [0.01] * 4, request_class=[0, 1, 0, 1])
    judge = Joint(classes=(fast, slow))
    got = judgement(1.0, judge, [sample(outcome, judge, ALL)], num_requests=4, growth=inf)
    assert [(each.share.value, each.attains) for each in got.judged[:2]] == [(0.5, True), (1, True)]
    assert got.attains
    assert got.worst.criterion.name == "fast"


def test_one_limit_alone() -> None:
    outcome = outcome_of([0.1, 9.0], [9.0, 0.01])
    assert sample(outcome, only("ttft", [CHAT]), ALL).num_hits[0] == 1
    assert sample(outcome, only("tpot", [CHAT]), ALL).num_hits[0] == 1
    assert sample(outcome, Joint(classes=(CHAT,)), ALL).num_hits[0] == 0


def test_unfinished_requests_miss_and_tell_that_the_run_was_cut() -> None:
    got = sample(outcome_of([0.1, inf], [0.01, inf]), Joint(classes=(CHAT,)), ALL)
    assert got.is_cut
    # Without a first token nothing is said of TPOT.
    assert got.num_hits == (1, 1, 2)


def test_the_number_in_flight() -> None:
    """One request a second; each stays two seconds, from the middle on four."""
    stays = np.where(np.arange(90) < 45, 2.0, 4.0)
    got = sample(outcome_of(list(stays), [0.0] * 90), Joint(classes=(CHAT,)), ALL).trend
    assert got.first == pytest.approx(2.0, abs=0.1)
    assert got.last == pytest.approx(4.0, abs=0.1)


GROWING = [
    # id                    trends                                        grows
    ("as much", [Trend(first=10, last=10)], False),
    ("more than chance", [Trend(first=10, last=20)], True),
    ("chance", [Trend(first=10, last=15)], False),
    ("from nothing", [Trend(first=0, last=2)], False),
    ("several agree", [Trend(first=10, last=15 + i / 10) for i in range(4)], True),
    ("several do not", [Trend(first=10, last=last) for last in (5, 30, 8, 12)], False),
    ("surely, but little", [Trend(first=100, last=105)] * 4, False),
]


@pytest.mark.parametrize(("trends", "want"), [c[1:] for c in GROWING], ids=[c[0] for c in GROWING])
def test_growth(trends: list[Trend], want: bool) -> None:
    assert grows(trends, growth=0.1) == want


def samples(hits: list[int], *, of: int = 1000, last: float = 10.0) -> list[Sample]:
    trend = Trend(first=10.0, last=last)
    marginals = (of, of)
    return [
        Sample(num_hits=(h, *marginals), num_all=(of, of, of), trend=trend, is_cut=False)
        for h in hits
    ]


VERDICTS = [
    # id             runs                                 attains  sure
    ("well above", samples([990, 992, 991]), True, True),
    ("well below", samples([500, 505, 498]), False, True),
    ("close", samples([905, 890, 912]), True, False),
    ("close, below", samples([895, 900, 890]), False, False),
    ("growing", samples([990, 992, 991], last=40.0), False, True),
    ("one run", samples([990]), True, True),
]


@pytest.mark.parametrize(
    ("runs", "attains", "sure"), [c[1:] for c in VERDICTS], ids=[c[0] for c in VERDICTS]
)
def test_verdicts(runs: list[Sample], attains: bool, sure: bool) -> None:
    got = judgement(1.0, Joint(classes=(CHAT,)), runs, num_requests=1000, growth=0.1)
    assert (got.attains, got.is_sure) == (attains, sure)
    assert (got.half_width == 0) == sure


def test_what_is_only_watched_never_binds() -> None:
    late = outcome_of([9.0] * 10, [9.0] * 10)
    judge = Joint(classes=(CHAT,))
    got = judgement(1.0, judge, [sample(late, judge, ALL)], num_requests=10, growth=inf)
    assert got.worst.criterion.name == "chat"
    watched = got.watched("ttft")
    assert watched is not None
    assert watched.value == 0
