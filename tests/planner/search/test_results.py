"""The order in which candidates are told."""

from dataclasses import replace
from itertools import permutations

import pytest

from planner.search.intervals import Interval
from planner.search.results import (
    Bottleneck,
    Candidate,
    Found,
    Goal,
    Quantiles,
    Ranked,
    Verdict,
    ranking,
)
from tests.planner.search.judgements import judgement
from tests.planner.search.pools import colocated, one_pair


def ranked(
    candidate: Candidate,
    goodput_per_s: float,
    *,
    usd: float = 1.0,
    watts: float = 1.0,
    share: float = 1.0,
) -> Ranked:
    none = Quantiles(p50=0.0, p90=0.0, p99=0.0)
    return Ranked(
        candidate=candidate,
        found=Found(judgements=(judgement(goodput_per_s, 1.0),)),
        verdict=Verdict(
            judgement=judgement(1.0, share),
            ttft_s=none,
            tpot_s=none,
            slo_scale=1.0,
            bottleneck=Bottleneck.DECODE,
            link_load=0.0,
            num_preemptions_per_request=0.0,
            usd_per_million_output_tokens=0.0,
            average_w=0.0,
            provisioned_w=watts,
        ),
        usd_per_hour=usd,
    )


SMALL = ranked(one_pair(1, 1), 2.0, usd=9.0, watts=3.0)
LARGE = ranked(one_pair(2, 2), 6.0, usd=6.0, watts=9.0)
LATE = ranked(one_pair(1, 2), 9.0, usd=1.0, watts=1.0, share=0.5)
LATER = ranked(colocated(), 4.0, usd=1.0, watts=1.0, share=0.5)

ORDERS = [
    # goal       rate   order
    (Goal.GPUS, True, [SMALL, LARGE, LATE, LATER]),
    (Goal.COST, True, [LARGE, SMALL, LATE, LATER]),
    (Goal.POWER, True, [SMALL, LARGE, LATE, LATER]),
    (Goal.GOODPUT, True, [LARGE, SMALL, LATE, LATER]),
    (Goal.GOODPUT, False, [LARGE, SMALL, LATE, LATER]),
    (Goal.COST, False, [LARGE, SMALL, LATE, LATER]),
    (Goal.POWER, False, [SMALL, LARGE, LATE, LATER]),
]


@pytest.mark.parametrize(("goal", "has_rate", "want"), ORDERS)
def test_who_attains_comes_first(goal: Goal, has_rate: bool, want: list[Ranked]) -> None:
    for found in permutations(want):
        assert list(ranking(found, goal, has_rate=has_rate)) == want


def test_equals_are_told_apart_by_what_they_are() -> None:
    few, many = ranked(one_pair(1, 1, tp=2), 4.0), ranked(one_pair(2, 2), 4.0)
    assert ranking([many, few], Goal.GOODPUT, has_rate=False) == (few, many)
    both = ranked(colocated(4), 4.0)
    assert ranking([many, both], Goal.GOODPUT, has_rate=False) == (many, both)
    assert ranking([both, many], Goal.GOODPUT, has_rate=False) == (many, both)


def test_what_does_not_survive_a_loss_does_not_attain() -> None:
    lost = replace(SMALL, after_loss=judgement(1.0, 0.1))
    assert SMALL.attains
    assert not lost.attains
    assert ranking([lost, LARGE], Goal.GPUS, has_rate=True) == (LARGE, lost)


def test_goodput_per_gpu() -> None:
    found = Found(judgements=(judgement(4.0, 1.0), judgement(8.0, 0.1)), most_per_s=20.0)
    assert found.per_gpu(2) == Interval(value=2.0, low=2.0, high=4.0)
    nothing = Found(judgements=(), most_per_s=20.0)
    assert nothing.per_gpu(2) == Interval(value=0.0, low=0.0, high=10.0)
    assert nothing.at_low is None
