"""What a search is given from elsewhere, as Protocols: work and the simulator."""

from collections.abc import Sequence
from typing import Protocol

from core.slo import Slo
from planner.sim.outcome import Outcome
from planner.sim.spec import UNLIMITED, Cluster
from planner.sim.traffic import Traffic


class RequestClass(Protocol):
    """What one kind of requests is promised."""

    @property
    def name(self) -> str:
        """Unique among a workload's."""
        ...

    @property
    def slo(self) -> Slo:
        """Its limits."""
        ...

    @property
    def target(self) -> float:
        """Share of its requests that must keep all of them, 0 to 1."""
        ...


class Workload(Protocol):
    """What arrives; equal seeds give equal requests, whatever the rate."""

    @property
    def classes(self) -> Sequence[RequestClass]:
        """`Traffic.request_class` counts them."""
        ...

    @property
    def is_random(self) -> bool:
        """False: every seed gives the same traffic."""
        ...

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        """The first `num_requests` at this mean rate."""
        ...


class Simulate(Protocol):
    """`planner.sim.simulate.simulate`, or a test's stand-in."""

    def __call__(
        self,
        cluster: Cluster,
        traffic: Traffic,
        *,
        slos: tuple[Slo, ...] = (),
        max_misses: int = UNLIMITED,
    ) -> Outcome:
        """Play the traffic; ends early once more than `max_misses` requests miss `slos`."""
        ...
