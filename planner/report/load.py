"""The load that a plan is made for, as requests that `baton bench` can replay."""

import csv
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from planner.report.measures import Measures, measures
from planner.search.inputs import Simulate
from planner.search.steady import Window
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic, traffic
from planner.workload.workload import Workload
from policy.step_times import PS_PER_S

SPAN_S = 300.0
"""Of a load: what one waits for a check."""
LEAST_REQUESTS, MOST_REQUESTS = 200, 20_000
EDGE_SHARE = 0.9
"""Of a goodput: at the goodput itself the luck of five minutes decides, not the plan."""
DIGITS = 6
"""Microseconds: finer than any client keeps to."""
WHOLE_RUN = Window(warm_up=0.0, cool_down=0.0)
ANY_GROWTH = float("inf")
"""What is replayed has an end: its backlog is no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests from second 0 on."""

    requests: Traffic
    rate_per_s: float
    """That was asked for; of so many requests the mean differs."""

    def write(self, path: Path) -> None:
        """As `baton bench --trace` reads it. Raises OSError."""
        columns = (
            self.requests.arrival_ps / PS_PER_S,
            self.requests.num_prompt_tokens,
            self.requests.num_output_tokens,
        )
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
            for at_s, prompt, output in zip(*columns, strict=True):
                writer.writerow((f"{at_s:.{DIGITS}f}", int(prompt), int(output)))


def checked_rate_per_s(asked_per_s: float | None, goodput_per_s: float) -> float:
    """That a check is made at: what was asked for, or close to the most."""
    return EDGE_SHARE * goodput_per_s if asked_per_s is None else asked_per_s


def load_of(workload: Workload, rate_per_s: float, seed: int, span_s: float = SPAN_S) -> Load:
    """The first requests of the workload, at moments that the file holds exactly."""
    num = int(np.clip(ceil(rate_per_s * span_s), LEAST_REQUESTS, MOST_REQUESTS))
    made = workload.traffic(rate_per_s, num, seed)
    at_s = np.round((made.arrival_ps - made.arrival_ps[0]) / PS_PER_S, DIGITS)
    # Prefixes that prompts share are not in the file, and so not in its forecast.
    plain = traffic(
        at_s,
        made.num_prompt_tokens,
        made.num_output_tokens,
        request_class=made.request_class,
    )
    return Load(requests=plain, rate_per_s=rate_per_s)


def forecast(simulate: Simulate, cluster: Cluster, load: Load, workload: Workload) -> Measures:
    """What a server that is as the latency model says would show under exactly this load."""
    outcome = simulate(cluster, load.requests)
    return measures([outcome], workload.classes, WHOLE_RUN, ANY_GROWTH)
