"""A goodput: rates that are tried, and how sure they are."""

from dataclasses import replace

import pytest

from planner.search.bracket import Search
from planner.search.fleet import cluster_of
from planner.search.goodput import below, find, find_goodput
from planner.search.judges import Joint
from planner.search.steady import Judgement
from planner.search.trials import Sampling, Trials
from tests.planner.search.fakes import CHAT, Work, fleet, simulate
from tests.planner.search.judgements import judgement
from tests.planner.search.pools import one_pair

SEARCH = Search(first_rate_per_s=4.0, precision=0.05)


def falling(rate_per_s: float) -> Judgement:
    """A point less for each request per second: 0.9 at 10."""
    return judgement(rate_per_s, 1.0 - 0.01 * rate_per_s, 0.008)


def test_the_limit_lies_between_the_rates() -> None:
    found = find(falling, SEARCH)
    assert found.low_per_s <= 10.0 < found.high_per_s
    assert found.high_per_s - found.low_per_s <= 0.05 * found.low_per_s
    assert found.at_low is not None
    assert found.at_low.attains


def test_rates_further_off_are_tried_until_chance_explains_nothing() -> None:
    """Within 0.8 of the limit nothing is sure."""
    plain, wide = find(falling, SEARCH), find(falling, SEARCH, max_widenings=4)
    assert (wide.low_per_s, wide.high_per_s) == (plain.low_per_s, plain.high_per_s)
    assert 0 < wide.sure_low_per_s <= 9.2
    assert 10.8 <= wide.sure_high_per_s < 15
    assert wide.sure_low_per_s >= plain.sure_low_per_s
    assert wide.sure_high_per_s <= plain.sure_high_per_s
    assert wide.per_gpu(2).low == wide.sure_low_per_s / 2


def test_what_is_sure_is_not_tried_again() -> None:
    def sure(rate_per_s: float) -> Judgement:
        return judgement(rate_per_s, 0.99 if rate_per_s <= 10 else 0.5, 0.001)

    assert find(sure, SEARCH, max_widenings=4) == find(sure, SEARCH)


def test_nothing_is_tried_above_a_bound() -> None:
    found = find(falling, below(8.0, precision=0.05), max_widenings=4)
    assert all(each.rate_per_s < 8.0 for each in found.judgements)
    assert found.high_per_s == found.sure_high_per_s == 8.0


def test_a_queue_of_one_server() -> None:
    """Prompts take 50 ms in the mean, and 90 % of them must be read within 500 ms."""
    trials = Trials(
        simulate=simulate,
        workload=Work(output_tokens=2),
        judge=Joint(classes=(CHAT,)),
        sampling=Sampling(max_runs=12),
    )
    found = find_goodput(trials, cluster_of(fleet(), one_pair()), below(20.0, precision=0.05))
    assert 15 < found.low_per_s < 19


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_target_that_is_easier_is_attained_at_higher_rates(factor: float) -> None:
    easy = replace(CHAT, target=0.5)
    found = [
        find_goodput(
            Trials(
                simulate=simulate,
                workload=Work(classes=(promise,)),
                judge=Joint(classes=(promise,)),
                sampling=Sampling(max_runs=6, seed=int(factor)),
            ),
            cluster_of(fleet(), one_pair()),
            below(20.0 * factor, precision=0.02),
        ).low_per_s
        for promise in (CHAT, easy)
    ]
    assert found[0] <= found[1]
