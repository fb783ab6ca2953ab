"""What a cluster comes to: quantiles, bottleneck, links, money, watts."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from core.slo import Slo
from planner.search.fleet import cluster_of
from planner.search.judges import Joint, Promise
from planner.search.results import Bottleneck, Verdict
from planner.search.trials import Sampling, Trials, judged
from planner.search.unloaded import kept_s, reached, spaced
from planner.search.verdicts import (
    average_w,
    link_load,
    quantiles,
    scales,
    usd_per_million,
    verdict,
)
from planner.sim.spec import Network
from planner.sim.traffic import traffic
from policy.step_times import PS_PER_S
from tests.planner.search.fakes import CHAT, Work, fleet, outcome, outcome_of, simulate
from tests.planner.search.pools import one_pair


def test_nothing_is_interpolated() -> None:
    found = quantiles(np.array([4.0, 1.0, np.nan, 3.0, 2.0]))
    assert (found.p50, found.p90, found.p99) == (2.0, 4.0, 4.0)


def test_money_per_token() -> None:
    assert usd_per_million(7.2, 1000.0) == pytest.approx(2.0)
    assert usd_per_million(7.2, 0.0) == inf


def test_how_many_times_as_large_limits_would_be_kept() -> None:
    slos = (Slo(ttft_s=0.5, tpot_s=0.01), Slo(e2e_s=10.0))
    made = outcome_of([1.0, 1.0, inf], [0.02, 0.4, inf], request_class=[0, 1, 1])
    found = scales(made, slos)
    assert found["ttft_s"].tolist() == pytest.approx([2.0, 0.0, inf])
    assert found["tpot_s"].tolist() == pytest.approx([2.0, 0.0, inf])
    assert found["e2e_s"].tolist() == pytest.approx([0.0, 0.5, inf])


def test_only_what_leaves_a_host_loads_its_link() -> None:
    """Two requests of 500 kB, 5 s: from host to host one, within a host the other."""
    network = Network(host_bytes_per_s=1e6)
    pair = cluster_of(replace(fleet(), network=network), one_pair(2, 2, tp=2))
    assert [each.host for each in pair.instances] == [0, 1, 0, 1]
    made = traffic(np.array([0.0, 1.0]), np.array([500, 500]), np.array([2, 2]))
    moments = np.array([PS_PER_S, 5 * PS_PER_S])
    run = outcome(pair, made, moments, moments)
    run = replace(run, handoff_ps=moments, prefill_by=np.array([0, 0]), decode_by=np.array([2, 3]))
    assert link_load(run) == pytest.approx(0.5e6 / 5e6)
    free = replace(run, cluster=replace(pair, network=Network()))
    assert link_load(free) == 0.0


def test_watts_by_what_an_instance_does() -> None:
    pair = cluster_of(fleet(), one_pair(1, 1))
    made = traffic(np.array([0.0]), np.array([500]), np.array([2]))
    end = np.array([10 * PS_PER_S])
    run = outcome(pair, made, end, end)
    run = replace(
        run,
        busy_prefill_ps=np.array([5 * PS_PER_S, 0]),
        busy_decode_ps=np.array([0, 20 * PS_PER_S]),  # of two lanes
    )
    assert average_w(run) == pytest.approx((0.5 * 400 + 0.5 * 50) + 300)


def verdict_at(
    rate_per_s: float, num_prefill: int, num_decode: int, promise: Promise = CHAT
) -> Verdict:
    trials = Trials(
        simulate=simulate,
        workload=Work(classes=(promise,)),
        judge=Joint(classes=(promise,)),
        sampling=Sampling(num_requests=400, max_runs=6),
    )
    cluster = cluster_of(fleet(), one_pair(num_prefill, num_decode))
    return verdict(trials, cluster, judged(trials, cluster, rate_per_s))


def test_a_cluster_that_attains() -> None:
    got = verdict_at(10.0, 1, 1)
    assert got.judgement.attains
    assert got.slo_scale <= 1
    assert got.ttft_s.p50 <= got.ttft_s.p90 <= got.ttft_s.p99
    assert got.provisioned_w == 1000
    # 400 tokens a second for 4 USD an hour, all but the warm-up's noise.
    assert got.usd_per_million_output_tokens == pytest.approx(4 / 3600 / 400 * 1e6, rel=0.1)
    assert got.ttft_share is not None
    assert got.ttft_share.value >= got.judgement.worst.share.value


BOTTLENECKS = [
    # rate  prefill decode  limits                           what
    (19.0, 1, 4, CHAT.slo, Bottleneck.PREFILL),
    (60.0, 8, 1, Slo(ttft_s=0.5, tpot_s=0.012), Bottleneck.DECODE),
]


@pytest.mark.parametrize(("rate", "prefill", "decode", "slo", "what"), BOTTLENECKS)
def test_bottlenecks(rate: float, prefill: int, decode: int, slo: Slo, what: Bottleneck) -> None:
    got = verdict_at(rate, prefill, decode, replace(CHAT, slo=slo))
    assert got.bottleneck is what


def test_what_was_cut_is_told_to_the_end() -> None:
    got = verdict_at(100.0, 1, 1)
    assert not got.judgement.attains
    assert not got.judgement.is_cut
    assert np.isfinite(got.ttft_s.p99)
    assert got.slo_scale > 1


def test_requests_that_never_meet() -> None:
    sample = Work().traffic(100.0, 1000, 0)
    far = spaced(sample, 50)
    assert len(far.arrival_ps) == 50
    assert np.diff(far.arrival_ps).min() > 1000 * PS_PER_S
    pair = cluster_of(fleet(), one_pair(1, 1))
    ttft, tpot = reached(simulate, pair, sample, [CHAT])
    assert (ttft.limit, tpot.limit) == ("ttft_s", "tpot_s")
    # The P90 of prompts of 250 to 750 tokens, at 0.1 ms each.
    assert ttft.reached_s == pytest.approx(0.07, abs=0.003)
    assert tpot.reached_s == pytest.approx(0.0101)
    assert ttft.is_met
    assert tpot.is_met


def test_what_a_target_keeps() -> None:
    assert kept_s(np.array([3.0, 1.0, 2.0, np.nan]), 0.75) == 2.0
