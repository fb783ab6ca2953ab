"""From candidates to clusters: hosts, kinds, losses."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.member import Role
from planner.search.fleet import (
    Fleet,
    Rules,
    cluster_of,
    hosts_of,
    losses,
    provisioned_w,
    spent,
    usd_per_hour,
    without,
)
from planner.search.hosts import Need, packed
from planner.search.results import Candidate, Goal
from planner.sim.spec import Network, Scheduling
from tests.planner.search.fakes import Source, fleet
from tests.planner.search.pools import colocated, one_pair, pool

PACKED = [
    # id                   needs                               hosts of 4   on
    ("one each", [Need(1, 4), Need(1, 4)], 2, (0, 1)),
    ("in the order given", [Need(1, 1), Need(1, 4), Need(1, 3)], 2, (0, 1, 0)),
    ("the largest first", [Need(1, 2), Need(1, 1), Need(1, 2), Need(1, 3)], 2, (1, 0, 1, 0)),
    ("stages spread", [Need(2, 3), Need(1, 1)], 2, (0, 0)),
    ("one host too few", [Need(1, 4), Need(1, 1)], 1, None),
    ("a stage is never split", [Need(1, 5)], 9, None),
    ("whole instances together", [Need(1, 3), Need(2, 1)], 2, (0, 1)),
    ("nothing", [], 0, ()),
]


@pytest.mark.parametrize(
    ("needs", "num_hosts", "want"), [c[1:] for c in PACKED], ids=[c[0] for c in PACKED]
)
def test_hosts(needs: list[Need], num_hosts: int, want: tuple[int, ...] | None) -> None:
    assert packed(needs, 4, num_hosts) == want


@given(st.lists(st.integers(1, 4), max_size=12))
def test_no_host_has_more_than_it_holds(sizes: list[int]) -> None:
    hosts = packed([Need(1, size) for size in sizes], 4, 100)
    assert hosts is not None
    used = Counter[int]()
    for host, size in zip(hosts, sizes, strict=True):
        used[host] += size
    assert all(num <= 4 for num in used.values())
    assert len(used) <= (2 * sum(sizes)) // 4 + 1  # at most one host is half empty


def test_a_cluster_is_what_its_pools_say() -> None:
    candidate = Candidate(pools=(pool(Role.PREFILL, 2, tp=2), pool(Role.DECODE, 1, tp=4)))
    made = cluster_of(fleet(), candidate)
    assert made.num_gpus == candidate.num_gpus == 8
    assert [each.role for each in made.instances] == [Role.PREFILL, Role.PREFILL, Role.DECODE]
    assert [each.host for each in made.instances] == [0, 0, 1]
    prefill, decode = made.kinds
    assert (prefill.capacity_tokens, decode.capacity_tokens) == (100_000, 200_000)
    assert (prefill.price_usd_per_hour, decode.power.provisioned_w) == (4.0, 2000)
    assert (usd_per_hour(made), provisioned_w(made)) == (16.0, 4000)


def test_phases_are_spread_alike_over_hosts() -> None:
    made = cluster_of(fleet(), one_pair(4, 4))
    assert [each.host for each in made.instances] == [0, 0, 1, 1] * 2
    uneven = cluster_of(fleet(), one_pair(2, 6))
    assert [each.host for each in uneven.instances[:2]] == [0, 1]


def test_what_a_goal_saves() -> None:
    pair = one_pair(2, 3)
    assert [spent(fleet(), pair, goal) for goal in Goal] == [5, 5, 10.0, 2500]


def test_rules_reach_the_kinds() -> None:
    rules = Rules(cache_tokens_share=0.25, max_batch=1000, chunk_tokens=300, placement="jsq")
    made = cluster_of(replace(fleet(), rules=rules), colocated(scheduling=Scheduling.CHUNKED))
    (kind,) = made.kinds
    assert (kind.cache_tokens, kind.capacity_tokens) == (12_500, 37_500)
    assert (kind.max_batch, kind.step_tokens, made.placement) == (256, 300, "jsq")


def test_what_does_not_fit_is_refused() -> None:
    small = fleet(num_hosts=1)
    assert hosts_of(small, one_pair(3, 2)) is None
    with pytest.raises(ConfigError, match="does not fit"):
        cluster_of(small, one_pair(3, 2))


def test_segments_share_hosts_and_move_kv_beside_each_other() -> None:
    source = Source(pps=(1, 2))
    network = Network(host_bytes_per_s=1e9, local_bytes_per_s=1e11)
    made = replace(fleet(source), network=network)
    pools = (pool(Role.PREFILL, 3, tp=2, pp=2), pool(Role.DECODE, 3, tp=2, pp=2))
    cluster = cluster_of(made, Candidate(pools=pools, num_segments=2))
    assert [each.host for each in cluster.instances] == [0, 2, 4, 0, 2, 4]
    assert cluster.network.local_bytes_per_s == 2e11


def test_hardware_of_two_kinds_never_shares_a_host() -> None:
    one, other = fleet().hardware[0], replace(fleet().hardware[0], name="other")
    pools = (pool(Role.PREFILL, 2), pool(Role.DECODE, 2, hardware="other"))
    cluster = cluster_of(Fleet(hardware=(one, other)), Candidate(pools=pools))
    assert [each.host for each in cluster.instances] == [0, 0, 1, 1]


def test_each_different_host_is_lost_once() -> None:
    cluster = cluster_of(fleet(), one_pair(2, 2, tp=4))
    assert sorted(losses(cluster)) == [(0,), (2,)]
    left = without(cluster, (0,))
    assert left is not None
    assert [each.role for each in left.instances] == [Role.PREFILL, Role.DECODE, Role.DECODE]


def test_without_the_last_of_a_phase_there_is_no_cluster() -> None:
    cluster = cluster_of(fleet(), one_pair(1, 2))
    assert without(cluster, (0,)) is None
