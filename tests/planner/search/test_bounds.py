"""Bounds: what they come to by hand, and that they never exclude what a simulation accepts."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from core.member import Role
from core.slo import Slo
from planner.search.bounds import bounds
from planner.search.costs import most_hits
from planner.search.fleet import Fleet, Rules, cluster_of
from planner.search.goodput import below, find_goodput
from planner.search.judges import Joint, Promise
from planner.search.results import Candidate
from planner.search.trials import Sampling, Trials
from planner.sim.simulate import simulate
from planner.sim.spec import Cluster, Network, Scheduling
from planner.sim.traffic import Traffic, traffic
from policy.step_times import NEVER, PS_PER_S
from tests.planner.search.fakes import CHAT, Source, Work, fleet
from tests.planner.search.pools import colocated, one_pair, pool

ALL = Promise(name="all", slo=Slo(tpot_s=0.05), target=1.0)


def alike(num: int = 100, *, prompt: int = 500, output: int = 41) -> Traffic:
    """Requests that do not differ, so that a sample says all."""
    return traffic(np.arange(num) / 1.0, np.full(num, prompt), np.full(num, output))


def pair(num_prefill: int = 1, num_decode: int = 1) -> Cluster:
    return cluster_of(fleet(), one_pair(num_prefill, num_decode))


def test_by_hand() -> None:
    """0.1 ms per prompt token. A step of a batch of b takes 10 + 0.1 b ms: 50 ms allow 400, the
    batch of 256 takes 35.6 ms for its 256 tokens."""
    got = bounds(pair(2, 3), alike(), [ALL])
    assert got.prefill_per_s == pytest.approx(2 / (500 * 1e-4))
    # 50,000 tokens of room hold 99 answers, whose step takes 19.9 ms.
    assert got.decode_per_s == pytest.approx(3 / (40 * 0.0199 / 99), rel=1e-3)
    assert got.room_per_s == pytest.approx(3 * 50_000 / (500 * 40 * 0.0101))
    assert got.together_per_s == got.links_per_s == inf
    assert got.most_per_s == min(got.prefill_per_s, got.decode_per_s)
    assert got.binding == "prefill compute"


def test_a_limit_on_tpot_bounds_the_batch() -> None:
    """12 ms allow 20 answers at a time, 20 / 0.012 tokens a second."""
    tight = replace(ALL, slo=Slo(tpot_s=0.012))
    got = bounds(pair(), alike(), [tight])
    assert got.decode_per_s == pytest.approx(20 / 0.012 / 40, rel=0.02)
    assert got.decode_per_s >= 20 / 0.012 / 40 * (1 - 1e-9)


def test_who_may_miss_costs_nothing() -> None:
    got = bounds(pair(), alike(), [replace(ALL, target=0.5)])
    # The margin for sampling is taken off, too.
    assert got.prefill_per_s >= 2 / (500 * 1e-4)


def test_kv_has_to_leave_its_host() -> None:
    network = Network(host_bytes_per_s=1e6, local_bytes_per_s=1e7)
    apart = cluster_of(replace(fleet(), network=network), one_pair(1, 1, tp=4))
    assert bounds(apart, alike(), [ALL]).links_per_s == pytest.approx(1e6 / (1000 * 500))
    together = cluster_of(replace(fleet(), network=network), one_pair(1, 1, tp=2))
    assert bounds(together, alike(), [ALL]).links_per_s == pytest.approx(1.1e7 / (1000 * 500))
    free = replace(apart, network=replace(network, is_shared=False))
    assert bounds(free, alike(), [ALL]).links_per_s == inf


def test_colocated_instances_pay_for_both_phases() -> None:
    got = bounds(cluster_of(fleet(), colocated()), alike(), [ALL])
    assert 1 / got.together_per_s == pytest.approx(1 / got.prefill_per_s + 1 / got.decode_per_s)


def test_the_cheapest_segment_of_a_table_counts() -> None:
    """Decode's tables may fall where a branch begins."""
    cluster = pair()
    steps = cluster.kinds[1].times
    num = steps.decode_base_ps.shape[0]
    starts = np.tile([0, 1000], (num, 1))
    starts[: num // 2, 1] = NEVER
    base = np.tile([int(0.01 * PS_PER_S), int(0.004 * PS_PER_S)], (num, 1))
    slope = np.tile([1_000_000, 2_000_000], (num, 1))
    odd = steps._replace(decode_starts=starts, decode_base_ps=base, decode_slope_ps=slope)
    kinds = (cluster.kinds[0], replace(cluster.kinds[1], times=odd, capacity_tokens=10**9))
    got = bounds(replace(cluster, kinds=kinds), alike(), [replace(ALL, slo=Slo())])
    # From 1,000 tokens on 0.004 + 2e-6 c ≥ 0.005 + 1e-6 c: 5 ms for 256 answers beside contexts.
    per_answer_s = 40 * 0.005 / 256 + 1e-6 * (40 * 500 + 40 * 41 / 2)
    assert got.decode_per_s == pytest.approx(1 / per_answer_s)


HITS = [
    # blocks of each prompt            leading ones seen before
    ([[0, 1, 2], [0, 1, 2]], [0, 3]),
    ([[0, 1], [0, 2], [0, 2]], [0, 1, 2]),
    ([[0], [], [1, 0]], [0, 0, 0]),
    ([[], [], []], [0, 0, 0]),
    ([[0, 0]], [0]),
]


@pytest.mark.parametrize(("blocks", "want"), HITS)
def test_prefix_hits_at_most(blocks: list[list[int]], want: list[int]) -> None:
    made = traffic(
        np.arange(len(blocks), dtype=np.float64),
        np.full(len(blocks), 10_000),
        np.full(len(blocks), 2),
        first_block=np.cumsum([0, *map(len, blocks)]),
        blocks=np.array([b for each in blocks for b in each], dtype=np.int64),
        block_tokens=16,
    )
    assert most_hits(made).tolist() == [16 * num for num in want]


PLAIN, SLOW_LINKS = fleet(), replace(fleet(), network=Network(host_bytes_per_s=3e6))
STAGES = fleet(Source(pps=(1, 2, 3)))
CACHED = replace(fleet(), rules=Rules(cache_tokens_share=0.3))

CLUSTERS = [
    # id                 fleet        candidate                      limits
    ("prefill binds", PLAIN, one_pair(1, 1), CHAT),
    ("decode binds", PLAIN, one_pair(4, 1), CHAT),
    ("a tight TPOT", PLAIN, one_pair(2, 1), replace(CHAT, slo=Slo(tpot_s=0.0115))),
    ("nothing is asked", PLAIN, one_pair(2, 1), replace(CHAT, slo=Slo())),
    ("few may miss", PLAIN, one_pair(1, 1), replace(CHAT, target=0.99)),
    ("many may miss", PLAIN, one_pair(1, 1), replace(CHAT, target=0.5)),
    ("e2e", PLAIN, one_pair(1, 1), replace(CHAT, slo=Slo(e2e_s=1.2))),
    ("little memory", fleet(Source(tokens_per_gpu=3000)), one_pair(2, 1), CHAT),
    ("colocated", PLAIN, colocated(), CHAT),
    ("chunks", PLAIN, colocated(scheduling=Scheduling.CHUNKED), CHAT),
    (
        "stages",
        STAGES,
        Candidate(pools=(pool(Role.PREFILL, pp=2), pool(Role.DECODE, pp=3))),
        CHAT,
    ),
    ("links bind", SLOW_LINKS, one_pair(2, 2, tp=4), CHAT),
    ("caches", CACHED, one_pair(1, 1), CHAT),
]


@pytest.mark.parametrize(
    ("made", "candidate", "promise"), [c[1:] for c in CLUSTERS], ids=[c[0] for c in CLUSTERS]
)
def test_no_bound_excludes_what_a_simulation_accepts(
    made: Fleet, candidate: Candidate, promise: Promise
) -> None:
    work = Work(classes=(promise,))
    cluster = cluster_of(made, candidate)
    got = bounds(cluster, work.traffic(1.0, 4000, 99), work.classes)
    sampling = Sampling(num_requests=800, span_s=20.0, max_requests=4000, max_runs=6)
    trials = Trials(
        simulate=simulate, workload=work, judge=Joint(classes=(promise,)), sampling=sampling
    )
    # Not told of the bound: it looks above it, too.
    search = replace(below(2 * got.most_per_s, precision=0.05), most_rate_per_s=inf)
    found = find_goodput(trials, cluster, search)
    assert 0 < found.low_per_s <= got.most_per_s
