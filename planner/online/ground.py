"""What a plan may consist of, and what a cluster of so many instances would attain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.errors import ConfigError
from core.member import Role
from core.parallel import ParallelLayout
from core.plan import Plan
from core.slo import Slo
from planner.online.history import History
from planner.search.bracket import Search
from planner.search.fleet import Fleet, cluster_of, hosts_of
from planner.search.goodput import find_goodput
from planner.search.inputs import Simulate
from planner.search.judges import Joint
from planner.search.results import Candidate, Pool
from planner.search.trials import Trials, judged, published, whole
from planner.sim.simulate import simulate
from planner.sim.spec import Scheduling

PRECISION = 0.02
"""Of a goodput: a fifth of the gain that a change has to bring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Instances of each pool."""

    prefill: int
    decode: int
    mixed: int = 0

    @property
    def total(self) -> int:
        """Instances."""
        return self.prefill + self.decode + self.mixed

    @classmethod
    def of(cls, plan: Plan) -> "Sizes":
        """As a plan has them."""
        return cls(
            prefill=plan.prefill.replicas, decode=plan.decode.replicas, mixed=plan.mixed.replicas
        )

    def of_role(self, role: Role) -> int:
        """How many."""
        return int(getattr(self, role.value))

    def __str__(self) -> str:
        """For people."""
        known = (Role.PREFILL, Role.DECODE, Role.MIXED)
        return " + ".join(f"{n} {role.value}" for role in known if (n := self.of_role(role)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a cluster would make of the recent requests."""

    attainment: float
    """Share that would keep all limits, as they came."""
    goodput_per_s: float
    """The highest rate of the same requests at which the target is attained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What stays as it is: hardware, layouts, limits. All instances are on the fleet's first kind
    of hardware."""

    fleet: Fleet
    layouts: Mapping[Role, ParallelLayout]
    slo: Slo
    target: float
    """Share of requests that must keep the limits, 0 to 1."""
    simulate: Simulate = field(default=simulate)
    scheduling: Scheduling = Scheduling.CHUNKED
    """Of mixed instances."""

    @classmethod
    def of(cls, fleet: Fleet, plan: Plan) -> "Ground":
        """Of a fleet as `planner.ask` sets it up, and a plan. Raises ConfigError, NoProfile."""
        layouts = {role: pool.layout for role, pool in plan.pools.items()}
        known = fleet.hardware[0].source.layouts()
        if problems := tuple(
            f"{role.value}: {fleet.hardware[0].source.name} has no times for {layouts[role]}"
            for role, pool in plan.pools.items()
            if pool.replicas and pool.layout not in known
        ):
            raise ConfigError(problems)
        online = plan.online
        return cls(
            fleet=fleet,
            layouts=layouts,
            slo=Slo(ttft_s=online.slo_ttft_s, tpot_s=online.slo_tpot_s),
            target=online.attainment,
        )

    @property
    def roles_can_change(self) -> bool:
        """An instance keeps its layout when its role changes: both pools must have the same."""
        return self.layouts[Role.PREFILL] == self.layouts[Role.DECODE]

    def candidate(self, sizes: Sizes) -> Candidate:
        """For the simulator."""
        return Candidate(pools=tuple(self._pools(sizes)))

    def _pools(self, sizes: Sizes) -> Iterator[Pool]:
        for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
            if num := sizes.of_role(role):
                is_mixed = role is Role.MIXED
                yield Pool(
                    role=role,
                    layout=self.layouts[role],
                    num=num,
                    hardware=self.fleet.hardware[0].name,
                    scheduling=self.scheduling if is_mixed else Scheduling.EXCLUSIVE,
                )

    def has_room(self, sizes: Sizes) -> bool:
        """In the hosts there are."""
        return hosts_of(self.fleet, self.candidate(sizes)) is not None

    def forecast(self, sizes: Sizes, history: History) -> Forecast:
        """Of the history as it came, and at other rates."""
        trials = self._trials(history)
        cluster = cluster_of(self.fleet, self.candidate(sizes))
        as_it_came = judged(whole(trials), cluster, history.rate_per_s)
        search = Search(first_rate_per_s=history.rate_per_s, precision=PRECISION)
        return Forecast(
            attainment=as_it_came.judged[0].share.value,
            goodput_per_s=find_goodput(trials, cluster, search).low_per_s,
        )

    def attains(self, sizes: Sizes, history: History, rate_per_s: float) -> bool:
        """Whether enough requests keep their limits at a rate."""
        cluster = cluster_of(self.fleet, self.candidate(sizes))
        return judged(self._trials(history), cluster, rate_per_s).attains

    def _trials(self, history: History) -> Trials:
        """One run, of which every request counts. That a backlog grows is not asked: bursts make
        one grow, and what it does to the limits is what is asked."""
        return Trials(
            simulate=self.simulate,
            workload=history,
            judge=Joint(classes=history.classes),
            sampling=published(len(history.at_s)),
        )
