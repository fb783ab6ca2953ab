"""How many runs it takes to judge a rate."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from core.slo import Slo
from planner.search.fleet import cluster_of
from planner.search.judges import Joint
from planner.search.trials import Counted, Sampling, Trials, judged, outcomes, published, whole
from planner.sim.outcome import Outcome
from planner.sim.spec import UNLIMITED, Cluster
from planner.sim.traffic import Traffic
from tests.planner.search.fakes import CHAT, Work, fleet, one_instance, outcome_of, simulate
from tests.planner.search.pools import one_pair

NUM = 1000
SAMPLING = Sampling(num_requests=NUM, max_runs=24)


class Luck:
    """A simulator in which a share of the requests is late, another one in each run."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self.max_misses: list[int] = []

    def __call__(
        self,
        cluster: Cluster,
        traffic: Traffic,
        *,
        slos: tuple[Slo, ...] = (),
        max_misses: int = UNLIMITED,
    ) -> Outcome:
        share = self._shares[len(self.max_misses) % len(self._shares)]
        self.max_misses.append(max_misses)
        num = len(traffic.arrival_ps)
        # Spread evenly, so that every window sees the same share.
        is_late = np.floor(np.arange(1, num + 1) * share) > np.floor(np.arange(num) * share)
        ttft_s = np.where(is_late, 9.0, 0.1)
        if is_late.sum() > max_misses:
            ttft_s[np.flatnonzero(is_late)[max_misses] :] = inf
        return outcome_of(list(ttft_s), [0.01] * num)


def trials(luck: Luck, sampling: Sampling = SAMPLING, *, is_random: bool = True) -> Trials:
    work = Work(is_random=is_random)
    return Trials(simulate=luck, workload=work, judge=Joint(classes=(CHAT,)), sampling=sampling)


RUNS = [
    # id                                shares late              attains  runs
    ("clearly attains", [0.0], True, 3),
    ("clearly misses", [0.18], False, 3),
    ("near, but runs agree", [0.07], True, 6),
    ("at the limit, runs agree", [0.1], True, 24),
    ("near, and runs differ", [0.02, 0.14], True, 24),
]


@pytest.mark.parametrize(
    ("late", "attains", "num"), [c[1:] for c in RUNS], ids=[c[0] for c in RUNS]
)
def test_runs_go_on_while_they_leave_it_open(late: list[float], attains: bool, num: int) -> None:
    luck = Luck(late)
    got = judged(whole(trials(luck)), one_instance(), 1.0)
    assert got.attains == attains
    assert got.num_runs == len(luck.max_misses) <= num
    assert got.is_sure or got.half_width <= 0.01 or got.num_runs == SAMPLING.max_runs


def test_it_stops_once_the_half_width_is_a_point() -> None:
    got = judged(
        whole(trials(Luck([0.095]), replace(SAMPLING, max_runs=1000))), one_instance(), 1.0
    )
    assert not got.is_sure
    assert got.half_width <= 0.01
    assert got.num_runs < 1000


def test_hopeless_runs_end_early_and_are_not_repeated() -> None:
    luck = Luck([0.9])
    got = judged(trials(luck), one_instance(), 1.0)
    assert got.is_cut
    assert not got.attains
    assert got.is_sure
    assert len(luck.max_misses) == 2
    assert luck.max_misses[0] < NUM


def test_what_was_cut_is_played_again_where_others_were_not() -> None:
    luck = Luck([0.9, 0.0, 0.0, 0.9, 0.0, 0.0])
    got = judged(trials(luck, replace(SAMPLING, max_runs=3)), one_instance(), 1.0)
    assert not got.is_cut
    assert luck.max_misses[3] == UNLIMITED
    assert got.judged[0].share.value == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("late", [0.0, 0.05, 0.1, 0.15, 0.19, 0.3, 0.6, 1.0])
def test_only_runs_that_miss_are_cut(late: float) -> None:
    got = judged(trials(Luck([late])), one_instance(), 1.0)
    uncut = judged(whole(trials(Luck([late]))), one_instance(), 1.0)
    assert got.attains == uncut.attains
    if got.is_cut:
        assert uncut.judged[0].share.value <= 0.8 + 1e-9


def test_one_run_says_all_of_what_is_the_same_for_every_seed() -> None:
    luck = Luck([0.1])
    assert judged(trials(luck, is_random=False), one_instance(), 1.0).num_runs == 1


def test_all_rates_and_clusters_see_the_same_seeds() -> None:
    work = Work()
    made = Trials(simulate=simulate, workload=work, judge=Joint(classes=(CHAT,)), sampling=SAMPLING)
    first, second = (cluster_of(fleet(), one_pair(num)) for num in (1, 2))
    num_runs = judged(made, first, 1.0).num_runs
    assert work.seeds == list(range(num_runs))
    work.seeds.clear()
    judged(made, second, 2.0)
    assert work.seeds[:num_runs] == list(range(num_runs))


def test_the_same_run_twice_is_the_same() -> None:
    made = Trials(
        simulate=simulate, workload=Work(), judge=Joint(classes=(CHAT,)), sampling=SAMPLING
    )
    cluster = cluster_of(fleet(), one_pair(1))
    assert judged(made, cluster, 12.0) == judged(made, cluster, 12.0)


LENGTHS = [
    # rate  span   requests
    (1.0, 0.0, 1000),
    (10.0, 50.0, 1000),
    (100.0, 50.0, 5000),
    (1e6, 50.0, 200_000),
]


@pytest.mark.parametrize(("rate_per_s", "span_s", "num"), LENGTHS)
def test_fast_arrivals_need_more_of_them(rate_per_s: float, span_s: float, num: int) -> None:
    assert Sampling(span_s=span_s).run_length(rate_per_s) == num


def test_as_published_one_run_of_so_many_requests_decides() -> None:
    luck = Luck([0.11])
    got = judged(trials(luck, published(300)), one_instance(), 1.0)
    assert (got.num_runs, got.num_requests, got.attains) == (1, 300, False)


def test_what_is_played_is_counted() -> None:
    counted = Counted(Luck([0.0]))
    made = Trials(
        simulate=counted, workload=Work(), judge=Joint(classes=(CHAT,)), sampling=SAMPLING
    )
    num_runs = judged(made, one_instance(), 1.0).num_runs
    num_runs += len(list(outcomes(made, one_instance(), 1.0, 2)))
    assert (counted.num_runs, counted.num_requests) == (num_runs, num_runs * NUM)
