"""What all parts of one search share: the fleet, the work, how runs are made, a sample of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from planner.search.bounds import Bounds, bounds
from planner.search.fleet import Fleet
from planner.search.inputs import RequestClass, Simulate, Workload
from planner.search.judges import Joint, Judge
from planner.search.phases import OneToken
from planner.search.trials import Sampling, Trials
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic

SAMPLE = 4000
"""Requests that bounds and lengths are read from."""
RESIDENCES = 6.0
"""Times that a long answer takes, in one run: the warm-up, a fifth of it, holds one."""
TPOT_S = 0.05
"""Where no limit says how long a token may take: about what people read at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Of one search."""

    fleet: Fleet
    workload: Workload
    simulate: Simulate
    sampling: Sampling
    precision: float
    """Of a goodput, as a share of it."""
    sample: Traffic

    @property
    def classes(self) -> tuple[RequestClass, ...]:
        """Of the workload."""
        return tuple(self.workload.classes)

    @property
    def joint(self) -> Trials:
        """All limits together."""
        return self.trials(Joint(classes=self.classes))

    def trials(self, judge: Judge) -> Trials:
        """Of the whole workload."""
        return Trials(
            simulate=self.simulate, workload=self.workload, judge=judge, sampling=self.sampling
        )

    def reading(self, judge: Judge) -> Trials:
        """Of prompts alone: they are soon done, so that short runs say as much."""
        return Trials(
            simulate=self.simulate,
            workload=OneToken(workload=self.workload),
            judge=judge,
            sampling=replace(self.sampling, span_s=0.0),
        )

    @property
    def prompts(self) -> Traffic:
        """The sample as `reading` plays it."""
        return self.sample._replace(num_output_tokens=np.ones_like(self.sample.num_output_tokens))

    def bounds(self, cluster: Cluster) -> Bounds:
        """On what it can attain."""
        return bounds(cluster, self.sample, self.classes)


def setting(
    fleet: Fleet, workload: Workload, simulate: Simulate, *, sampling: Sampling, precision: float
) -> Setting:
    """With runs that are long enough for the work, unless more is asked for."""
    sample = workload.traffic(1.0, SAMPLE, sampling.seed)
    needed_s = RESIDENCES * residence_s(sample, workload.classes)
    return Setting(
        fleet=fleet,
        workload=workload,
        simulate=simulate,
        sampling=replace(sampling, span_s=max(sampling.span_s, needed_s)),
        precision=precision,
        sample=sample,
    )


def residence_s(sample: Traffic, classes: Sequence[RequestClass]) -> float:
    """How long an answer of the P90 length takes where it just keeps its limits."""
    longest = 0.0
    for number, each in enumerate(classes):
        outputs = sample.num_output_tokens[sample.request_class == number]
        if outputs.size:
            slo = each.slo
            tokens = float(np.quantile(outputs, 0.9, method="inverted_cdf"))
            spent_s = (slo.ttft_s or 0.0) + (slo.tpot_s or TPOT_S) * tokens
            longest = max(longest, min(spent_s, slo.e2e_s or inf))
    return longest
