"""Each phase by itself, as DistServe's Algorithm 1 simulates it.

Prefill alone: every answer is one token, so that nothing is handed off and nothing decodes, as if
decode took no time. An instance without GPUs stands for those who would decode.

Decode alone: one instance without GPUs reads every prompt in a picosecond, has room for all of
them, and hands them over at no cost. TPOT counts from there, waiting for room included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.member import Role
from planner.search.inputs import RequestClass, Workload
from planner.sim.spec import UNLIMITED, Cluster, Instance, Kind
from planner.sim.traffic import Traffic
from policy.step_times import StepTimes

PLACEMENT = "shortest_queue"
"""DistServe's; with nothing to hand off, others come to much the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneToken:
    """The same prompts, each answered by one token."""

    workload: Workload

    @property
    def classes(self) -> Sequence[RequestClass]:
        """The workload's own."""
        return self.workload.classes

    @property
    def is_random(self) -> bool:
        """As the workload."""
        return self.workload.is_random

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        """As the workload's."""
        made = self.workload.traffic(rate_per_s, num_requests, seed)
        return made._replace(num_output_tokens=np.ones_like(made.num_output_tokens))


def prefill_alone(kind: Kind, num: int = 1) -> Cluster:
    """So many instances that only ever read prompts; play `OneToken` traffic."""
    idle = replace(kind, name="nothing to decode", num_gpus=0, capacity_tokens=UNLIMITED)
    prefill = Instance(kind=0, role=Role.PREFILL)
    return Cluster(
        kinds=(kind, idle),
        instances=(*(prefill,) * num, Instance(kind=1, role=Role.DECODE)),
        placement=PLACEMENT,
    )


def decode_alone(kind: Kind, num: int = 1) -> Cluster:
    """So many instances that only ever write answers."""
    source = Kind(
        name="instant prefill",
        times=instant(kind.times),
        num_gpus=0,
        max_batch=1,
        step_tokens=UNLIMITED,
        kv_bytes_per_token=kind.kv_bytes_per_token,
    )
    # Kinds are compared with the first one, which therefore has to take some time.
    decode = Instance(kind=0, role=Role.DECODE)
    return Cluster(
        kinds=(kind, source),
        instances=(Instance(kind=1, role=Role.PREFILL), *(decode,) * num),
        placement=PLACEMENT,
    )


def instant(times: StepTimes) -> StepTimes:
    """Steps of prompts that take no time; the simulator makes it a picosecond."""
    return times._replace(
        prefill_tokens=np.array([0.0, 1.0]),
        prefill_s=np.zeros(2),
        per_pair_s=0.0,
        num_stages=1,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
    )
