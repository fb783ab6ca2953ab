"""DistServe's search, its quick start, and what the same units attain in steady state."""

import pytest

from core.member import Role
from core.slo import Slo
from planner.search.candidates import Limits, units
from planner.search.fleet import Fleet, Hardware, Rules, cluster_of, kind_of
from planner.search.judges import Joint
from planner.search.parallel import Workers
from planner.search.phases import OneToken, decode_alone, prefill_alone
from planner.search.published import (
    published_rates,
    published_trials,
    steady_rates,
    units_goodput,
)
from planner.search.results import Candidate, Found
from planner.search.trials import Sampling, Trials
from planner.search.unloaded import spaced
from planner.sim.simulate import simulate
from planner.workload.presets import load_workload
from policy.distserve import DistServe
from policy.step_times import PS_PER_S, prefill_s
from tests.planner.search.pools import one_pair

OPT_13B = DistServe(model="opt-13b")
FLEET = Fleet(
    hardware=(Hardware(name="gpu", source=OPT_13B, gpus_per_host=4, num_hosts=1),),
    # Its prefill batches are bounded by memory alone, its dispatch knows queues.
    rules=Rules(placement="shortest_queue", pairs_at_arrival=False, step_tokens=66_144),
)
CHAT = load_workload("sharegpt", slo=Slo(ttft_s=0.2, tpot_s=0.1))
UNITS = units(FLEET, Limits())


def layouts(candidate: Candidate) -> tuple[str, ...]:
    return tuple(str(pool.layout) for pool in candidate.pools)


def quick_start(num_requests: int) -> list[tuple[Candidate, Found]]:
    trials = published_trials(simulate, CHAT, num_requests)
    return units_goodput(trials, FLEET, UNITS, published_rates, Workers())


def test_the_quick_start_finds_the_published_placement() -> None:
    found = quick_start(300)
    assert len(found) == 9
    best, goodput = found[0]
    assert layouts(best) == ("2x1", "1x1")
    # Rates per GPU are bisected from 0 to 5 in steps of 0.15625.
    per_gpu = goodput.low_per_s / best.num_gpus
    assert per_gpu / 0.15625 == pytest.approx(round(per_gpu / 0.15625))
    assert 1.5 < per_gpu < 2.2  # 1.5625 published, 1.875 by its simulator with these lengths


def test_a_short_run_does_not_see_that_a_backlog_grows() -> None:
    short, long = dict(quick_start(300)), dict(quick_start(6000))
    best = next(unit for unit in UNITS if layouts(unit) == ("2x1", "1x1"))
    assert long[best].low_per_s < 0.8 * short[best].low_per_s


def test_in_steady_state() -> None:
    """1.36 requests/s per GPU by DistServe's simulator over 6,000 requests."""
    trials = Trials(
        simulate=simulate,
        workload=CHAT,
        judge=Joint(classes=CHAT.classes),
        sampling=Sampling(span_s=300.0, max_runs=12),
    )
    best = [unit for unit in UNITS if layouts(unit) == ("2x1", "1x1")]
    ((unit, found),) = units_goodput(trials, FLEET, best, steady_rates(trials, 0.05), Workers())
    assert 1.2 < found.per_gpu(unit.num_gpus).value < 1.6


def test_a_phase_alone_is_not_held_up_by_the_other() -> None:
    prefill, decode = (kind_of(FLEET, pool) for pool in one_pair(1, 1).pools)
    work = spaced(CHAT.traffic(1.0, 50))
    read = simulate(prefill_alone(prefill), spaced(OneToken(workload=CHAT).traffic(1.0, 50, 0)))
    want = [prefill_s(prefill.times, n, n * (n + 1) / 2) for n in work.num_prompt_tokens]
    assert read.ttft_s.tolist() == pytest.approx(want)
    written = simulate(decode_alone(decode), work)
    assert written.ttft_s.max() <= 50 / PS_PER_S
    both = simulate(cluster_of(FLEET, one_pair(1, 1)), work)
    assert written.tpot_s.tolist() == pytest.approx(both.tpot_s.tolist(), nan_ok=True)
    assert all(each.role is not Role.MIXED for each in both.cluster.instances)
