"""What must hold whatever the numbers: queueing theory, conservation, links, failures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from core.errors import ConfigError
from core.member import Role
from core.slo import Slo
from planner.sim.build import build
from planner.sim.leap import MAX_LEAP
from planner.sim.simulate import machine_code, simulate
from planner.sim.spec import MIXED_POOL, UNLIMITED, Change, Cluster, Instance, Kind, Network
from planner.sim.state import DONE, REFUSED, Sim
from planner.sim.traffic import Traffic, traffic
from policy.queueing import inter_op_ttft_s, intra_op_ttft_s, single_ttft_s
from policy.step_times import PS_PER_S, StepTimes
from tests.planner.sim.worlds import any_clusters, traffics

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def step_times(prefill_s: float = 0.1, decode_s: float = 0.01, num_stages: int = 1) -> StepTimes:
    """Steps that take the same whatever is in them."""
    rows = (65, 1)
    return StepTimes(
        prefill_tokens=np.array([0.0, 1.0]),
        prefill_s=np.array([prefill_s, prefill_s]),
        per_pair_s=0.0,
        num_stages=num_stages,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
        decode_starts=np.zeros(rows, dtype=np.int64),
        decode_base_ps=np.full(rows, round(decode_s * PS_PER_S), dtype=np.int64),
        decode_slope_ps=np.zeros(rows, dtype=np.int64),
        shared_s=0.0,
        mixed_factor=0.0,
    )


KIND = Kind(name="constant", times=step_times(), max_batch=64, max_prompts=1)


def cluster(
    *roles: Role, kind: Kind = KIND, network: Network | None = None, one_host: bool = False
) -> Cluster:
    """One instance of each role, each on its own host."""
    return Cluster(
        kinds=(kind,),
        instances=tuple(
            Instance(kind=0, role=role, host=0 if one_host else i) for i, role in enumerate(roles)
        ),
        network=network or Network(),
    )


def equal_requests(arrival_s: list[float], prompt: int = 8, output: int = 4) -> Traffic:
    """All alike."""
    num = len(arrival_s)
    return traffic(np.array(arrival_s), np.full(num, prompt), np.full(num, output))


THEORY = [
    # id               stages service_s mean TTFT
    ("single", 1, 0.1, single_ttft_s(0.1, 6.0)),
    ("two stages", 2, 0.1, inter_op_ttft_s(0.1, 6.0)),
    ("1.6 times faster", 1, 0.1 / 1.6, intra_op_ttft_s(0.1, 6.0, 1.6)),
]


@pytest.mark.parametrize(
    ("stages", "service_s", "want_s"), [c[1:] for c in THEORY], ids=[c[0] for c in THEORY]
)
def test_md1(stages: int, service_s: float, want_s: float) -> None:
    kind = replace(KIND, times=step_times(service_s, num_stages=stages))
    means = []
    for seed in range(20):
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / 6.0, 20_000))
        played = simulate(cluster(P, D, kind=kind), equal_requests(list(arrivals), output=1))
        means.append(played.ttft_s[2_000:].mean())
    error_s = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - want_s) < 3 * error_s
    assert error_s < 0.02 * want_s


def _ended(of: Cluster, requests: Traffic) -> Sim:
    sim = build(of.checked(), requests, (), UNLIMITED, MAX_LEAP)
    machine_code(of)(sim)
    return sim


@settings(deadline=None, max_examples=200)
@given(of=any_clusters(), requests=traffics())
def test_nothing_is_left_behind(of: Cluster, requests: Traffic) -> None:
    sim = _ended(of, requests)
    states = sim.requests["state"]
    assert np.isin(states, (DONE, REFUSED)).all()
    done = states == DONE
    assert (sim.requests["emitted"][done] == requests.num_output_tokens[done]).all()
    assert (sim.requests["last"][~done] == -1).all()
    moments = [sim.requests[name][done] for name in ("arrival", "first", "last")]
    assert (np.diff(moments, axis=0) >= 0).all()
    for name in ("held", "context", "num_running", "busy"):
        assert (sim.lanes[name] == 0).all(), name
    for name in ("num_prefilling", "num_pending_prompt_tokens", "num_incoming", "num_decoding"):
        assert (getattr(sim.table, name) == 0).all(), name
    assert (sim.table.num_free_blocks == sim.table.num_blocks).all()
    if of.placement == MIXED_POOL:
        assert (sim.lanes["pool_pending"] == 0).all()
        assert (sim.lanes["pool_memory"] == 0).all()
    assert (sim.links.num == 0).all()
    assert sim.due.num[0] == 0


def test_kv_takes_its_bytes_over_the_bandwidth() -> None:
    # BLOOM-176B: 70 layers of 14,336 in two bytes, keys and values, at 200 GiB/s.
    kind = replace(KIND, kv_bytes_per_token=2.0 * 14336 * 70 * 2)
    network = Network(host_bytes_per_s=200 * 1024**3)
    for tokens, want_ps in ((4096, 76_562_500_000), (2048, 38_281_250_000)):
        requests = equal_requests([0.0], prompt=tokens)
        played = simulate(cluster(P, D, kind=kind, network=network), requests)
        assert played.handoff_ps[0] - played.first_token_ps[0] == want_ps
        assert played.moved_bytes.tolist() == [tokens * kind.kv_bytes_per_token, 0.0]


MEGABYTE = replace(KIND, kv_bytes_per_token=1e6)
"""Eight tokens take 0.1 s at 80 MB/s."""
SHARES = [
    # id                          roles            one host is_shared spans of both transfers, s
    ("one link, both over it", (P, P, D), [0, 0, 1], True, [0.2, 0.2]),
    ("each its own", (P, P, D), [0, 0, 1], False, [0.1, 0.1]),
    ("out apart, in together", (P, P, D), [0, 1, 2], True, [0.2, 0.2]),
    ("one within the host", (P, P, D), [0, 1, 1], True, [0.1, 0.1]),
]


@pytest.mark.parametrize(
    ("roles", "hosts", "is_shared", "want_s"), [c[1:] for c in SHARES], ids=[c[0] for c in SHARES]
)
def test_shared_links(
    roles: tuple[Role, ...], hosts: list[int], is_shared: bool, want_s: list[float]
) -> None:
    network = Network(host_bytes_per_s=8e7, local_bytes_per_s=8e7, is_shared=is_shared)
    of = Cluster(
        kinds=(MEGABYTE,),
        instances=tuple(
            Instance(kind=0, role=r, host=h) for r, h in zip(roles, hosts, strict=True)
        ),
        network=network,
    )
    played = simulate(of, equal_requests([0.0, 0.0]))
    spans_ps = played.handoff_ps - played.first_token_ps
    assert spans_ps / PS_PER_S == pytest.approx(want_s, abs=2e-12)


def test_a_flow_that_is_produced_slowly_leaves_the_rest() -> None:
    # Layer by layer, the first request's body cannot be sent faster than it is computed: 3 of 4
    # layers, 6 MB, over the 0.1 s of its step: 60 MB/s of 80. The other one, whole, has 20 MB/s
    # until then.
    kind = replace(MEGABYTE, num_layers=4)
    of = replace(
        cluster(P, P, D, kind=kind, network=Network(host_bytes_per_s=8e7, layerwise_from_tokens=9)),
        pairs_at_arrival=True,
    )
    of = replace(of, instances=(*(replace(i, host=0) for i in of.instances[:2]), of.instances[2]))
    requests = traffic(np.array([0.0, 0.1]), np.array([8, 12]), np.array([4, 4]))
    played = simulate(of, requests)
    # Whole: 8 MB from 0.1 s on. Body: 9 MB over 0.1 to 0.2 s needs 90 MB/s, more than half of 80:
    # both have 40 until 8 MB are through at 0.3 s; then body's last 1 MB, then 3 MB of the tail.
    assert played.handoff_ps[0] / PS_PER_S == pytest.approx(0.3, abs=1e-11)
    assert played.handoff_ps[1] / PS_PER_S == pytest.approx(0.3 + 4e6 / 8e7, abs=1e-11)
    slow = replace(kind, times=step_times(0.45))
    of = replace(
        of,
        kinds=(kind, slow),
        instances=(of.instances[0], replace(of.instances[1], kind=1), of.instances[2]),
    )
    requests = traffic(np.array([0.0, 0.0]), np.array([8, 12]), np.array([4, 4]))
    played = simulate(of, requests)
    # Body: 9 MB over 0.45 s, 20 MB/s; the whole one has the other 60 from 0.1 s on.
    assert played.handoff_ps[0] / PS_PER_S == pytest.approx(0.1 + 8e6 / 6e7, abs=1e-11)
    assert played.handoff_ps[1] / PS_PER_S == pytest.approx(0.45 + 3e6 / 8e7, abs=1e-11)


def test_a_failure_loses_nobody_and_keeps_what_was_delivered() -> None:
    of = replace(cluster(P, D, D), changes=(Change(at_s=0.1251, instance=1, back_s=0.3),))
    played = simulate(of, equal_requests([0.0], output=5))
    # First token 0.1 s, two more by 0.12 s; then prompt and three tokens are read again, which
    # gives the fourth, and the fifth follows elsewhere.
    assert played.first_token_ps[0] == 0.1 * PS_PER_S
    assert played.second_token_ps[0] == 0.11 * PS_PER_S
    assert played.last_token_ps[0] == (0.1251 + 0.1 + 0.01) * PS_PER_S
    assert played.decode_by[0] == 2


def test_a_second_token_that_was_lost_comes_later() -> None:
    of = replace(cluster(P, D, D), changes=(Change(at_s=0.105, instance=1),))
    played = simulate(of, equal_requests([0.0], output=3))
    assert played.second_token_ps[0] == 0.205 * PS_PER_S
    assert played.last_token_ps[0] == 0.215 * PS_PER_S


def test_two_losses_in_one_moment() -> None:
    # The KV of all waits: nobody may be asked for twice.
    kind = replace(KIND, kv_bytes_per_token=1e6)
    of = replace(
        cluster(P, D, D, D, kind=kind, network=Network(host_bytes_per_s=1e6)),
        changes=(Change(at_s=0.5, instance=1), Change(at_s=0.5, instance=2)),
    )
    played = simulate(of, equal_requests([0.0] * 6))
    assert (played.decode_by == 3).all()
    assert (played.last_token_ps > 0).all()


def test_another_role() -> None:
    of = replace(cluster(P, D, D), changes=(Change(at_s=1.0, instance=2, role=P),))
    played = simulate(of, equal_requests([0.0] * 4 + [2.0] * 4))
    assert set(played.prefill_by[:4]) == {0}
    assert set(played.prefill_by[4:]) == {0, 2}
    assert set(played.decode_by[4:]) == {1}


def test_a_pipelined_instance_keeps_its_role() -> None:
    kind = replace(KIND, times=step_times(num_stages=2))
    of = replace(cluster(P, D, kind=kind), changes=(Change(at_s=1.0, instance=0, role=D),))
    with pytest.raises(ConfigError, match="pipelined"):
        simulate(of, equal_requests([0.0]))


def test_prompts_that_begin_alike_are_hits() -> None:
    kind = replace(KIND, cache_tokens=16)
    blocks = [[0, 1], [0, 1], [2, 3], [4, 5], [0, 1]]
    requests = traffic(
        np.arange(5.0),
        np.full(5, 9),
        np.full(5, 2),
        first_block=np.arange(0, 11, 2),
        blocks=np.array(blocks).ravel(),
        block_tokens=4,
    )
    played = simulate(cluster(P, D, kind=kind), requests)
    # Four blocks are kept: the first prompt's go for the fourth's.
    assert played.num_hit_tokens.tolist() == [0, 8, 0, 0, 0]


def test_busy_time() -> None:
    played = simulate(cluster(P, D), equal_requests([0.0, 1.0], output=11))
    assert played.busy_prefill_ps.tolist() == [0.2 * PS_PER_S, 0]
    assert played.busy_decode_ps.tolist() == [0, 0.2 * PS_PER_S]


def test_who_would_come_too_late_is_refused() -> None:
    of = replace(cluster(P, D), max_ttft_s=0.35)
    played = simulate(of, equal_requests([0.0] * 8))
    assert 0 < played.is_refused.sum() < 8
    assert (played.ttft_s[~played.is_refused] <= 0.35).all()
    assert (played.prefill_by[played.is_refused] == -1).all()


def test_more_misses_than_allowed_end_it() -> None:
    slos = (Slo(ttft_s=0.25),)
    requests = equal_requests([0.0] * 100, output=1)
    all_of_it = simulate(cluster(P, D), requests, slos=slos)
    assert all_of_it.met(slos).sum() == 2
    early = simulate(cluster(P, D), requests, slos=slos, max_misses=10)
    assert early.end_ps == 13 * 0.1 * PS_PER_S  # the eleventh miss
    assert (early.last_token_ps >= 0).sum() == 13


def test_every_class_needs_its_limits() -> None:
    requests = equal_requests([0.0, 0.0])._replace(request_class=np.array([0, 1]))
    with pytest.raises(ConfigError, match="2 classes"):
        simulate(cluster(P, D), requests, slos=(Slo(ttft_s=1.0),))


def test_more_arrivals_in_one_moment_than_any_instance_has_places() -> None:
    played = simulate(cluster(M), equal_requests([0.0] * 5_000, output=2))
    assert (played.last_token_ps > 0).all()


def test_drawn_instances_are_no_turns() -> None:
    of = replace(cluster(P, P, D), placement="random")
    played = simulate(of, equal_requests(list(np.arange(2_000.0)), output=1))
    same = np.mean(played.prefill_by[1:] == played.prefill_by[:-1])
    assert abs(same - 0.5) < 3 * 0.5 / np.sqrt(2_000)
