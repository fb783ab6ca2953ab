"""A question about a model, GPUs and a workload, and what is answered."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Flag, auto
from math import inf

from planner.search.budget import Budget, affordable
from planner.search.candidates import Limits
from planner.search.fleet import Fleet
from planner.search.inputs import Simulate, Workload
from planner.search.results import Goal, Ranked
from planner.search.spare import Spare
from planner.search.trials import Sampling
from planner.search.unloaded import Reach


class Affinity(Flag):
    """DistServe's two kinds of cluster: which candidates are looked at."""

    HIGH = auto()
    """Algorithm 1: hosts are joined by fast links."""
    LOW = auto()
    """Algorithm 2: KV had better stay within a host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked."""

    fleet: Fleet
    workload: Workload
    simulate: Simulate
    rate_per_s: float | None = None
    """Requests that have to be served; None: as many as the GPUs can."""
    goal: Goal = Goal.GPUS
    max_gpus: int | None = None
    """None: as many as the hosts have."""
    max_usd_per_hour: float = inf
    max_w: float = inf
    """Installed, of all GPUs with their share of the hosts."""
    affinity: Affinity = Affinity.HIGH | Affinity.LOW
    spare: Spare = Spare.NONE
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    precision: float = 0.05
    """Of a goodput, as a share of it."""
    num_simulated: int = 8
    """Disaggregated clusters that are simulated as a whole, and half as many colocated ones."""
    num_threads: int = 1

    @property
    def most_gpus(self) -> int:
        """That may be used."""
        there_are = sum(each.num_gpus for each in self.fleet.hardware)
        most = there_are if self.max_gpus is None else min(self.max_gpus, there_are)
        cheapest_usd = min(each.price_usd_per_gpu_hour for each in self.fleet.hardware)
        least_w = min(each.power.provisioned_w for each in self.fleet.hardware)
        for limit, each in ((self.max_usd_per_hour, cheapest_usd), (self.max_w, least_w)):
            most = min(most, affordable(limit, each)) if each > 0 and limit < inf else most
        return most

    @property
    def budget(self) -> Budget:
        """What may be spent."""
        return Budget(
            max_gpus=self.most_gpus, max_usd_per_hour=self.max_usd_per_hour, max_w=self.max_w
        )

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not self.fleet.hardware:
            yield "a plan needs GPUs of some kind"
            return
        if self.rate_per_s is not None and self.rate_per_s <= 0:
            yield f"the rate must be above 0, got {self.rate_per_s:g} requests per second"
        if self.rate_per_s is None and self.most_gpus > MAX_GPUS:
            yield (
                "without a rate a number of GPUs is needed, or USD per hour or watts that buy "
                f"{MAX_GPUS:,} at most"
            )
        if self.most_gpus < 1:
            yield f"at least 1 GPU is needed, and there is room or money for {self.most_gpus}"
        if not 0 < self.precision < 1:
            yield f"the precision must be between 0 and 1, got {self.precision:g}"
        if self.num_threads < 1 or self.num_simulated < 1:
            yield "the numbers of threads and of simulated clusters must be at least 1"
        yield from self._unpriced()

    def _unpriced(self) -> Iterator[str]:
        for each in self.fleet.hardware:
            if self._asks(Goal.COST, self.max_usd_per_hour) and each.price_usd_per_gpu_hour <= 0:
                yield f"{each.name} has no price, and cost is to be low"
            if self._asks(Goal.POWER, self.max_w) and each.power.provisioned_w <= 0:
                yield f"{each.name}'s power is not known, and it is to be low"

    def _asks(self, goal: Goal, limit: float) -> bool:
        return self.goal is goal or limit < inf


MAX_GPUS = 100_000
"""That a budget may come to: every split of it is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is answered."""

    ranked: tuple[Ranked, ...]
    """Disaggregated clusters, best first."""
    colocated: Ranked | None
    """The best one, by the same latency models; None: none keeps its limits at any rate."""
    missed: tuple[Reach, ...]
    """Limits that no layout can keep, however low the rate, and what is the nearest to be had."""
    best_rate_per_s: float
    """The highest that any of these clusters attains; 0: none does at any."""
    reasons: tuple[str, ...]
    """For people: how it came to this."""
    num_runs: int
    num_requests: int
    """That were simulated."""

    @property
    def is_feasible(self) -> bool:
        """Some cluster does what was asked, disaggregated or not."""
        return self.best is not None or (self.colocated is not None and self.colocated.attains)

    @property
    def best(self) -> Ranked | None:
        """The first disaggregated cluster that attains; None where none does."""
        return next((each for each in self.ranked if each.attains), None)

    @property
    def colocated_wins(self) -> bool:
        """It attains more per GPU than the best disaggregated one."""
        mine = 0.0 if self.best is None else self.best.goodput_rps_per_gpu.value
        return self.colocated is not None and self.colocated.goodput_rps_per_gpu.value > mine
