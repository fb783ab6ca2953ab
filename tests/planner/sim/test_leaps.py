"""Leaps change nothing: the simulator equals a naive one, and itself step by step."""

from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import given, settings

from core.member import Role
from planner.sim.outcome import Outcome
from planner.sim.simulate import simulate
from planner.sim.spec import Cluster, Instance, Kind, Scheduling
from planner.sim.traffic import Traffic, traffic
from policy.step_times import NEVER, StepTimes
from tests.planner.sim.reference import Reference
from tests.planner.sim.reference_state import Lane
from tests.planner.sim.worlds import UNIT_PS, UNIT_S, any_clusters, plain_clusters, traffics

MOMENTS = {
    "first_token_ps": "first",
    "second_token_ps": "second",
    "last_token_ps": "last",
    "prefill_start_ps": "start",
    "handoff_ps": "handoff",
    "num_hit_tokens": "hits",
    "is_refused": "is_refused",
}


def _instance(lane: Lane | None) -> int:
    return lane.instance if lane else -1


def _by_instance(played: Reference, name: str) -> list[int]:
    sums = [0] * len(played.cluster.instances)
    for lane in played.lanes:
        sums[lane.instance] += getattr(lane, name)
    return sums


@settings(deadline=None, max_examples=250)
@given(cluster=plain_clusters(), requests=traffics())
def test_equals_the_reference(cluster: Cluster, requests: Traffic) -> None:
    played = Reference(cluster, requests)
    played.play()
    outcome = simulate(cluster, requests)
    for column, name in MOMENTS.items():
        assert list(getattr(outcome, column)) == [getattr(r, name) for r in played.requests], name
    assert list(outcome.prefill_by) == [_instance(r.prefill_by) for r in played.requests]
    assert list(outcome.decode_by) == [_instance(r.decode_by) for r in played.requests]
    assert list(outcome.busy_prefill_ps) == _by_instance(played, "busy_prefill")
    assert list(outcome.busy_decode_ps) == _by_instance(played, "busy_decode")
    counters = outcome.counters
    assert counters.num_preemptions == played.num_preemptions
    num_steps = counters.num_leapt_steps + counters.num_single_steps
    assert num_steps == sum(lane.num_steps for lane in played.lanes)
    assert outcome.end_ps == played.now


def test_who_has_landed_comes_before_who_waits_for_room() -> None:
    """Found at random: one answer is put off, and another one takes its place in the batch before
    its memory goes to a prompt whose KV has not been sent yet."""
    rows = np.arange(5)[:, None]
    times = StepTimes(
        prefill_tokens=np.array([0.0, 8.0]),
        prefill_s=np.array([UNIT_S, UNIT_S]),
        per_pair_s=0.0,
        num_stages=1,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
        decode_starts=np.where(rows == 0, NEVER, 0),
        decode_base_ps=np.where(rows == 0, 0, UNIT_PS),
        decode_slope_ps=0 * rows,
        shared_s=0.0,
        mixed_factor=0.0,
    )
    kind = Kind(
        name="small",
        times=times,
        capacity_tokens=40,
        max_batch=1,
        step_tokens=3,
        max_prompts=1,
        scheduling=Scheduling.JOINED,
        max_pauses=1,
    )
    roles = (Role.PREFILL, Role.DECODE)
    cluster = Cluster(
        kinds=(kind,),
        instances=tuple(Instance(kind=0, role=role, host=0) for role in roles),
        placement="round_robin",
        pairs_at_arrival=False,
    )
    requests = traffic(np.zeros(5), np.array([3, 1, 18, 21, 1]), np.array([20, 2, 2, 2, 1]))
    played = Reference(cluster, requests)
    played.play()
    seconds = list(simulate(cluster, requests).second_token_ps)
    assert seconds == [request.second for request in played.requests]
    assert seconds[1] < seconds[2] < seconds[3]


def _columns(outcome: Outcome) -> dict[str, Any]:
    names = {each.name for each in fields(outcome)} - {"traffic", "cluster", "counters"}
    return {name: np.asarray(getattr(outcome, name)).tolist() for name in sorted(names)}


@settings(deadline=None, max_examples=400)
@given(cluster=any_clusters(), requests=traffics())
def test_equals_itself_step_by_step(cluster: Cluster, requests: Traffic) -> None:
    leaping, stepping = simulate(cluster, requests), simulate(cluster, requests, max_leap=1)
    assert _columns(leaping) == _columns(stepping)
    one, other = leaping.counters, stepping.counters
    assert (other.num_leaps, other.num_leapt_steps) == (0, 0)
    assert one.num_leapt_steps >= 2 * one.num_leaps
    assert one.num_leapt_steps + one.num_single_steps == other.num_single_steps
    assert one.num_preemptions == other.num_preemptions
    assert one.num_transfers == other.num_transfers
