"""What a cluster comes to when requests never meet: no rate makes it better."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.search.inputs import RequestClass, Simulate
from planner.sim.outcome import Outcome
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic
from policy.step_times import PS_PER_S
from policy.table import Floats

NUM_REQUESTS = 400
GAP_S = 10_000.0
"""Between arrivals: longer than any answer takes."""
LIMITS = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One limit of one class, and what can be had at its target."""

    class_name: str
    limit: str
    """One of LIMITS."""
    limit_s: float
    reached_s: float
    """Seconds that the target's share of the requests keep."""

    @property
    def is_met(self) -> bool:
        """Whether it can be kept at all."""
        return self.reached_s <= self.limit_s


def spaced(sample: Traffic, num_requests: int = NUM_REQUESTS) -> Traffic:
    """The first requests of a sample, so far apart that each is alone."""
    num = min(num_requests, len(sample.arrival_ps))
    first_block = sample.first_block[: num + 1]
    return Traffic(
        arrival_ps=np.arange(num, dtype=np.int64) * int(GAP_S * PS_PER_S),
        num_prompt_tokens=sample.num_prompt_tokens[:num],
        num_output_tokens=sample.num_output_tokens[:num],
        request_class=sample.request_class[:num],
        num_cached_tokens=sample.num_cached_tokens[:num],
        first_block=first_block,
        blocks=sample.blocks[: int(first_block[-1])],
        block_tokens=sample.block_tokens,
    )


def reached(
    simulate: Simulate, cluster: Cluster, sample: Traffic, classes: Sequence[RequestClass]
) -> tuple[Reach, ...]:
    """Every limit that is set, by class."""
    return reaches(simulate(cluster, spaced(sample)), classes)


def reaches(outcome: Outcome, classes: Sequence[RequestClass]) -> tuple[Reach, ...]:
    """What a run kept of each limit, by class."""
    found = []
    for number, each in enumerate(classes):
        own = outcome.traffic.request_class == number
        for limit in LIMITS:
            limit_s = getattr(each.slo, limit)
            if limit_s is not None and own.any():
                values = getattr(outcome, limit)[own]
                found.append(
                    Reach(
                        class_name=each.name,
                        limit=limit,
                        limit_s=limit_s,
                        reached_s=kept_s(values, each.target),
                    )
                )
    return tuple(found)


def kept_s(values: Floats, target: float) -> float:
    """The least limit that so many keep; undefined values keep any."""
    return float(np.quantile(np.nan_to_num(values, nan=0.0), target, method="inverted_cdf"))
