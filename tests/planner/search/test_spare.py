"""What a cluster has to survive."""

from dataclasses import replace

import pytest

from planner.search.fleet import cluster_of
from planner.search.judges import Joint
from planner.search.spare import Spare, impossible, judged_with, reduced
from planner.search.trials import Sampling, Trials
from tests.planner.search.fakes import CHAT, Work, fleet, simulate
from tests.planner.search.pools import one_pair

TRIALS = Trials(
    simulate=simulate,
    workload=Work(),
    judge=Joint(classes=(CHAT,)),
    sampling=Sampling(num_requests=300, max_runs=6),
)

LOSSES = [
    # spare           tp  prefill decode  what is left, by number of instances
    (Spare.NONE, 1, 3, 2, []),
    (Spare.INSTANCE, 1, 3, 2, [4, 4]),
    (Spare.INSTANCE, 1, 1, 2, [None, 2]),
    (Spare.HOST, 4, 3, 2, [4, 4]),
    (Spare.HOST, 2, 2, 2, [2]),
    (Spare.HOST, 1, 2, 2, [None]),
]


@pytest.mark.parametrize(("spare", "tp", "prefill", "decode", "left"), LOSSES)
def test_each_different_loss(
    spare: Spare, tp: int, prefill: int, decode: int, left: list[int | None]
) -> None:
    cluster = cluster_of(fleet(), one_pair(prefill, decode, tp=tp))
    got = [None if each is None else len(each.instances) for each in reduced(cluster, spare)]
    assert got == left


def test_the_worst_loss_decides() -> None:
    """Two instances read 30 prompts a second; one of them does not."""
    cluster = cluster_of(fleet(), one_pair(2, 2))
    assert judged_with(TRIALS, cluster, 30.0, Spare.NONE).attains
    assert not judged_with(TRIALS, cluster, 30.0, Spare.INSTANCE).attains
    assert judged_with(TRIALS, cluster, 10.0, Spare.INSTANCE).attains
    assert not judged_with(TRIALS, cluster, 10.0, Spare.HOST).attains  # all are on one


def test_what_is_impossible_says_which_phase_is_in_want() -> None:
    got = impossible(TRIALS, 5.0, "tpot")
    ttft, tpot = got.watched("ttft"), got.watched("tpot")
    assert not got.attains
    assert got.is_sure
    assert ttft is not None
    assert tpot is not None
    assert (ttft.value, tpot.value) == (1.0, 0.0)
    assert got.num_runs == 0


def test_a_class_that_keeps_no_promise_cannot_be_spared() -> None:
    hopeless = replace(CHAT, target=1.0)
    trials = replace(TRIALS, judge=Joint(classes=(hopeless,)))
    cluster = cluster_of(fleet(), one_pair(1, 1))
    assert not judged_with(trials, cluster, 100.0, Spare.INSTANCE).attains
