"""Machines under a budget, by hand and against trying everything."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.member import Role
from core.slo import Slo
from planner.search.cheapest import Cheapest, splits
from planner.search.intervals import Interval
from planner.search.judges import Criterion, Joint, Promise
from planner.search.machines import Budget, Counts, Design, Machine, Saving, Slot, designs
from planner.search.provision import (
    TieBreak,
    by_saving,
    by_throughput,
    cheapest,
    load_of,
    most_throughput,
)
from planner.search.spare import Spare
from planner.search.steady import Judged, Judgement
from planner.search.trials import Sampling, Trials
from planner.sim.spec import Cluster, Kind, Power
from policy.sizing import DGX_A100, DGX_H100, DGX_H100_CAPPED, equal_cost, equal_power
from tests.planner.search.fakes import Work, simulate, times


def machine(
    name: str, *, usd: float, watts: float, speed: float = 1.0, most: int = 10**6
) -> Machine:
    kind = Kind(
        name=name,
        times=times(token_s=1e-4 / speed),
        num_gpus=8,
        capacity_tokens=10**6,
        price_usd_per_hour=usd,
        power=Power(provisioned_w=watts),
    )
    return Machine(name=name, kind=kind, max_count=most)


A100 = machine("A100", usd=DGX_A100.cost, watts=DGX_A100.power)
H100 = machine("H100", usd=DGX_H100.cost, watts=DGX_H100.power, speed=2.0)
CAPPED = machine("H100cap", usd=DGX_H100_CAPPED.cost, watts=DGX_H100_CAPPED.power, speed=2.0)


def design(reads: Machine, writes: Machine) -> Design:
    slots = (Slot(role=Role.PREFILL, machine=reads), Slot(role=Role.DECODE, machine=writes))
    return Design(name=f"{reads.name}{writes.name}", slots=slots, placement="shortest_queue")


ISO_POWER, ISO_COST = Budget(max_w=40 * DGX_H100.power), Budget(max_usd_per_hour=40 * DGX_H100.cost)

PUBLISHED = [
    # Splitwise's sizing arithmetic
    ("35P: 8 A100", ISO_POWER, design(H100, A100), 35, 8),
    ("25P: 26 A100", ISO_POWER, design(H100, A100), 25, 26),
    ("25P: 21 capped", ISO_POWER, design(H100, CAPPED), 25, 21),
    ("35P: 7 capped", ISO_POWER, design(H100, CAPPED), 35, 7),
    ("25P: 15 H100", ISO_POWER, design(H100, H100), 25, 15),
    ("45P: 25 A100", ISO_POWER, design(A100, A100), 45, 25),
    ("30P: 21 A100", ISO_COST, design(H100, A100), 30, 21),
    ("51P: 35 A100", ISO_COST, design(A100, A100), 51, 35),
]


@pytest.mark.parametrize(
    ("budget", "made", "readers", "writers"),
    [c[1:] for c in PUBLISHED],
    ids=[c[0] for c in PUBLISHED],
)
def test_published_pools_spend_their_budget(
    budget: Budget, made: Design, readers: int, writers: int
) -> None:
    assert made.most((readers, 0), 1, budget) == writers
    assert made.is_within((readers, writers), budget)
    assert not made.is_within((readers, writers + 1), budget)
    assert (readers, writers) in set(splits(made, budget))


def test_pools_of_one_kind_are_as_the_sizing_arithmetic_has_them() -> None:
    both = Design(name="A100", slots=(Slot(role=Role.MIXED, machine=A100),))
    assert (
        list(splits(both, ISO_POWER)) == [(equal_power(DGX_A100, of=DGX_H100, num=40),)] == [(70,)]
    )
    assert list(splits(both, ISO_COST)) == [(equal_cost(DGX_A100, of=DGX_H100, num=40),)] == [(86,)]


def test_an_inventory_is_shared_by_slots_of_one_type() -> None:
    few = replace(H100, max_count=5)
    assert design(few, few).most((3, 0), 1, Budget()) == 2
    assert design(few, A100).most((3, 0), 1, Budget(max_machines=9)) == 6
    assert set(splits(design(few, few), Budget(max_machines=100))) == {
        (1, 4),
        (2, 3),
        (3, 2),
        (4, 1),
    }


def test_every_pair_of_types_is_a_design() -> None:
    made = list(designs([A100, H100]))
    assert len(made) == 4 + 2
    assert len({each.name for each in made}) == 6


def judgement(attains: bool, margin: float) -> Judgement:
    share = Interval(value=0.5 + margin, low=0, high=1)
    return Judgement(
        rate_per_s=1.0,
        judged=(Judged(criterion=Criterion(name="all", target=0.5), share=share),),
        is_steady=attains,
        is_cut=False,
        num_runs=1,
        num_requests=1,
    )


def passing(edge: Callable[[int, int], bool]) -> Callable[[Cluster], Judgement]:
    """By the numbers of readers and of writers."""

    def judge(cluster: Cluster) -> Judgement:
        roles = [each.role for each in cluster.instances]
        readers, writers = roles.count(Role.PREFILL), roles.count(Role.DECODE)
        return judgement(edge(readers, writers), 0.001 * readers)

    return judge


STAIRS = st.lists(st.integers(1, 14), min_size=1, max_size=8).map(
    lambda needs: sorted(needs, reverse=True)
)


MACHINES = {each.name: each for each in (A100, H100, CAPPED)}
NAMES = st.sampled_from(sorted(MACHINES))


@given(STAIRS, NAMES, NAMES, st.sampled_from(Saving))
def test_nothing_cheaper_passes(stairs: list[int], reads: str, writes: str, saving: Saving) -> None:
    """With more writers fewer readers will do, down to a least number."""

    def passes(readers: int, writers: int) -> bool:
        return readers >= stairs[min(writers, len(stairs)) - 1]

    made = design(MACHINES[reads], MACHINES[writes])
    found = Cheapest(made, saving, Budget(), passing(passes)).run()
    every = [c for c in product(range(1, 15), range(1, 10)) if passes(*c)]
    least = min(made.spent(c, saving) for c in every)
    want = {c for c in every if made.spent(c, saving) == pytest.approx(least)}
    # Of those with more readers than another one with as many writers there can be none.
    assert set(found) == want


def test_a_budget_that_does_not_suffice() -> None:
    judge = passing(lambda readers, writers: readers >= 5 and writers >= 5)
    assert Cheapest(design(H100, H100), Saving.MACHINES, Budget(max_machines=9), judge).run() == []
    found = Cheapest(design(H100, H100), Saving.MACHINES, Budget(max_machines=10), judge).run()
    assert found == [(5, 5)]


PROMISE = Promise(name="chat", slo=Slo(ttft_s=0.5, tpot_s=0.05), target=0.9)


def trials() -> Trials:
    return Trials(
        simulate=simulate,
        workload=Work(classes=(PROMISE,)),
        judge=Joint(classes=(PROMISE,)),
        sampling=Sampling(num_requests=400, max_runs=6),
    )


def test_machines_for_a_load() -> None:
    load = load_of(trials())
    aa = cheapest(design(A100, A100), load, 60.0)
    hh = cheapest(design(H100, H100), load, 60.0)
    assert aa is not None
    assert hh is not None
    assert aa.judgement.attains
    assert aa.counts[0] > hh.counts[0]  # prompts take twice as long
    assert aa.counts[1] == hh.counts[1]
    fewer = (aa.counts[0] - 1, aa.counts[1])
    assert not load.judge(design(A100, A100).cluster(fewer), 60.0).attains
    assert by_saving([aa, hh], Saving.MACHINES)[0] is hh
    assert by_saving([hh, aa], Saving.POWER)[0].design.name == "A100A100"


def test_one_more_than_is_needed() -> None:
    plain, spare = load_of(trials()), load_of(trials(), Spare.INSTANCE)
    few, more = (cheapest(design(H100, H100), each, 60.0) for each in (plain, spare))
    assert few is not None
    assert more is not None
    assert more.counts == tuple(count + 1 for count in few.counts)


TIES = [
    # machines pass if 2 · readers + writers ≥ 9, or so: (3, 2), (2, 3) cost the same
    (TieBreak.FEWEST_WRITERS, (3, 2)),
    (TieBreak.FEWEST_READERS, (2, 3)),
    (TieBreak.MOST_MARGIN, (3, 2)),
]


@pytest.mark.parametrize(("tie_break", "want"), TIES)
def test_ties_are_broken_by_name(
    tie_break: TieBreak, want: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_of(trials())
    edge = passing(lambda readers, writers: readers + writers >= 5 and min(readers, writers) >= 2)
    monkeypatch.setattr(type(load), "judge", lambda _, cluster, rate_per_s: edge(cluster))
    found = cheapest(design(H100, H100), load, 1.0, tie_break=tie_break)
    assert found is not None
    assert found.counts == want
    assert set(found.ties) == {(3, 2), (2, 3)} - {want}


def test_the_most_load_of_a_budget() -> None:
    load, budget = load_of(trials()), Budget(max_machines=6)
    found = most_throughput(design(H100, H100), load, budget)
    assert found is not None
    assert found.found is not None
    assert sum(found.counts) == 6
    every = [(n, 6 - n) for n in range(1, 6)]
    rate_per_s = found.found.low_per_s
    others = [c for c in every if load.judge(found.design.cluster(c), 1.1 * rate_per_s).attains]
    assert others == []
    assert by_throughput([found]) == (found,)


def test_what_has_no_price_cannot_be_cheap() -> None:
    free = design(machine("free", usd=0.0, watts=1.0), A100)
    with pytest.raises(ConfigError, match="free: usd per hour is not known"):
        cheapest(free, load_of(trials()), 1.0, saving=Saving.COST)
    with pytest.raises(ConfigError, match="a budget"):
        most_throughput(free, load_of(trials()), Budget())
