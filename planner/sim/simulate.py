"""Play requests through a cluster: the one entrance to the simulator."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from core.slo import Slo
from planner.compiled import Recipe, compiled
from planner.sim.build import build
from planner.sim.handle import play
from planner.sim.heap import NONE
from planner.sim.leap import MAX_LEAP
from planner.sim.outcome import Counters, Outcome
from planner.sim.spec import UNLIMITED, Cluster, Scheduling
from planner.sim.state import (
    NOW,
    NUM_EVENTS,
    NUM_LEAPS,
    NUM_LEAPT,
    NUM_PREEMPTIONS,
    NUM_SINGLE,
    NUM_TRANSFERS,
    REFUSED,
    Sim,
)
from planner.sim.traffic import Traffic
from policy.table import Floats, Ints

FRUGAL = frozenset(
    f"planner.sim.{name}"
    for name in (
        *("advance", "start", "end", "lane", "transfer", "links", "changes", "prefix", "heap"),
        *("leap", "state", "mixed_pool", "splitwise", "candidates"),
    )
) | {
    *("policy.step_times", "policy.scorers.prefill_load", "policy.scorers.decode_load"),
}
"""Only placement by predictions, which is the router's own source, makes arrays: the policies of
load are asked for one row."""
INLINED = frozenset(
    {"planner.sim.run.run", "planner.sim.place.decide", "planner.sim.place._arrive"}
)


def _no_scores(*_arguments: object) -> Floats:
    return np.zeros(0)


def _never(*_arguments: object) -> bool:
    return False


def _nothing(*_arguments: object) -> None:
    return None


PREDICTING = (
    ("planner.sim.place._too_late", _never),
    ("policy.scorers.slo_prefill", _no_scores),
    ("policy.scorers.slo_decode", _no_scores),
)
"""What only the `slo` policy and admission call, and what takes longest to compile."""
PUBLISHED = (
    ("planner.sim.splitwise.waits_for_end", _never),
    ("planner.sim.splitwise.start_selected", _nothing),
)
"""What only SPLITWISE's instances call."""


def simulate(
    cluster: Cluster,
    traffic: Traffic,
    *,
    slos: Sequence[Slo] = (),
    max_misses: int = UNLIMITED,
    max_leap: int = MAX_LEAP,
) -> Outcome:
    """Until every request has ended, or more than `max_misses` have missed their class's limits.

    `max_leap` 1 goes step by step: the same result, later. Threads may simulate beside each other.

    Raises:
        ConfigError: the cluster makes no sense; every problem is named.
    """
    sim = build(cluster.checked(), traffic, slos, max_misses, max_leap)
    machine_code(cluster)(sim)
    return _outcome(sim, cluster, traffic)


def machine_code(cluster: Cluster) -> Any:  # noqa: ANN401 - as numba
    """The simulator, compiled at its first call and then kept on disk."""
    return _compiled(recipe(cluster))


def recipe(cluster: Cluster) -> Recipe:
    """How the simulator is compiled for a cluster."""
    predicts = cluster.placement == "slo" or np.isfinite(cluster.max_ttft_s)
    published = any(kind.scheduling is Scheduling.SPLITWISE for kind in cluster.kinds)
    instead = (() if predicts else PREDICTING) + (() if published else PUBLISHED)
    return Recipe(frugal=FRUGAL, inlined=INLINED, instead=instead, keeps=True)


@cache
def _compiled(how: Recipe) -> Any:  # noqa: ANN401
    return compiled(play, how)


def _outcome(sim: Sim, cluster: Cluster, traffic: Traffic) -> Outcome:
    requests, lanes, counters = sim.requests, sim.lanes, sim.counters
    instance = np.append(lanes["instance"], -1)  # lane -1 is instance -1
    owners = lanes["instance"]
    num_hosts = int(lanes["host"].max()) + 1
    return Outcome(
        traffic=traffic,
        cluster=cluster,
        first_token_ps=requests["first"].copy(),
        # Noted as its step begins; an early end may come before it.
        second_token_ps=np.where(requests["second"] <= counters[NOW], requests["second"], NONE),
        last_token_ps=requests["last"].copy(),
        prefill_start_ps=requests["start"].copy(),
        handoff_ps=requests["handoff"].copy(),
        prefill_by=instance[requests["prefill_by"]],
        decode_by=instance[requests["decode_by"]],
        num_hit_tokens=requests["hits"].copy(),
        is_refused=requests["state"] == REFUSED,
        end_ps=int(counters[NOW]),
        busy_prefill_ps=_sums(owners, lanes["busy_prefill"], len(cluster.instances)),
        busy_decode_ps=_sums(owners, lanes["busy_decode"], len(cluster.instances)),
        moved_bytes=_sums(lanes["host"], lanes["moved"], num_hosts),
        counters=Counters(
            num_events=int(counters[NUM_EVENTS]),
            num_leaps=int(counters[NUM_LEAPS]),
            num_leapt_steps=int(counters[NUM_LEAPT]),
            num_single_steps=int(counters[NUM_SINGLE]),
            num_preemptions=int(counters[NUM_PREEMPTIONS]),
            num_transfers=int(counters[NUM_TRANSFERS]),
        ),
    )


def _sums(owners: Ints, values: Ints | Floats, num: int) -> Any:  # noqa: ANN401 - as the values
    """Of each owner; a pipelined instance's lanes work beside each other."""
    sums = np.zeros(num, dtype=values.dtype)
    np.add.at(sums, owners, values)
    return sums
