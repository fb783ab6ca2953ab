"""plan.toml: how many instances of each kind, with which parallelism. The planner writes it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.config import parse_as
from core.limits import MAX_TIMEOUT_S
from core.member import Role
from core.parallel import ParallelLayout

SCHEMA = 1


PAIRED = "paired"
AFFINITIES = ("any", PAIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """A kind of place that instances can be put into; the planner names them by their hardware."""

    num_cpus: float = 1.0
    """Ray CPUs per worker."""
    num_gpus: float = 0.0
    """Ray GPUs per worker."""
    resources: dict[str, float] = field(default_factory=dict)
    """Other Ray resources per instance, such as "accelerator_type:H100" = 0.001."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.num_cpus < 0 or self.num_gpus < 0:
            yield "num_cpus and num_gpus must be at least 0"
        for name, amount in self.resources.items():
            if not amount > 0:
                yield f"resources.{name} must be above 0, got {amount}"
            if name in ("CPU", "GPU"):
                yield f"resources.{name}: say num_cpus or num_gpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """All instances of one role."""

    replicas: int = 1
    """Instances; from 0."""
    layout: ParallelLayout = field(default_factory=ParallelLayout)
    num_cpus: float = 1.0
    """Ray CPUs per worker."""
    num_gpus: float = 0.0
    """Ray GPUs per worker."""
    instance_type: str = ""
    """One of the plan's instance_types, in place of num_cpus and num_gpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPlan:
    """The routers."""

    replicas: int = 1
    port: int = 0
    """Of gRPC, of the first one; the others take the next ones. 0: any free one."""
    http_port: int = 0
    """The same, of OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlinePlan:
    """Planning from what is served: roles and pool sizes follow the load."""

    enabled: bool = False
    slo_ttft_s: float = 1.0
    """Targets that a plan has to keep."""
    slo_tpot_s: float = 0.1
    attainment: float = 0.9
    """Share of requests that keep both, 0 to 1."""
    max_instances: int = 0
    """Of all pools together; 0: as many as the plan has."""
    window_s: float = 600.0
    """That is looked at; a shift has to last for one more."""
    cool_down_s: float = 300.0
    """Between two changes."""
    gpu: str = ""
    """What instances run on, as the planner's catalogue names it; empty: they are as fast as the
    profile says that `baton up --profile` gave."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not (self.slo_ttft_s > 0 and self.slo_tpot_s > 0):
            yield "slo_ttft_s and slo_tpot_s must be above 0"
        if not 0 < self.attainment < 1:
            yield f"attainment must be between 0 and 1, got {self.attainment}"
        if not self.window_s > 0:
            yield f"window_s must be above 0, got {self.window_s}"
        if self.max_instances < 0 or self.cool_down_s < 0:
            yield "max_instances and cool_down_s must be at least 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the cluster is to look like."""

    schema: int = SCHEMA
    model: str = ""
    """A model folder, a .gguf file, hf:ORG/NAME@COMMIT, or empty for the default model."""
    model_name: str = ""
    """As clients call it, also after an update to other weights; empty: its folder's name."""
    prefill: PoolPlan = field(default_factory=PoolPlan)
    decode: PoolPlan = field(default_factory=PoolPlan)
    mixed: PoolPlan = field(default_factory=lambda: PoolPlan(replicas=0))
    router: RouterPlan = field(default_factory=RouterPlan)
    instance_types: dict[str, InstanceType] = field(default_factory=dict)
    affinity: str = "any"
    """paired: the first prefill instance shares its host with the first decode instance, the second
    with the second (DistServe, OSDI '24, section 4.2: KV stays within hosts)."""
    drain_s: float = 30.0
    """How long answers of an instance that leaves may take; longer ones go on elsewhere."""
    max_surge: int = 1
    """Instances more than planned while others are replaced; 0: the old one leaves first."""
    online: OnlinePlan = field(default_factory=OnlinePlan)

    @property
    def pools(self) -> dict[Role, PoolPlan]:
        """By role."""
        return {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.MIXED: self.mixed}

    @property
    def num_ranks(self) -> int:
        """Processes that compute, of all instances."""
        return sum(pool.replicas * pool.layout.num_workers for pool in self.pools.values())

    @property
    def layouts(self) -> frozenset[ParallelLayout]:
        """Of all instances that it asks for."""
        return frozenset(pool.layout for pool in self.pools.values() if pool.replicas)

    def type_of(self, pool: PoolPlan) -> InstanceType:
        """Where its instances are put."""
        if pool.instance_type:
            return self.instance_types[pool.instance_type]
        return InstanceType(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.schema != SCHEMA:
            yield f"schema must be {SCHEMA}, got {self.schema}"
        for role, pool in self.pools.items():
            yield from _pool_problems(role.value, pool)
            if pool.instance_type and pool.instance_type not in self.instance_types:
                yield f"{role}.instance_type: no instance_types.{pool.instance_type} in the plan"
        for name, kind in self.instance_types.items():
            yield from (f"instance_types.{name}.{problem}" for problem in kind.problems())
        yield from (f"online.{problem}" for problem in self.online.problems())
        yield from self._own_problems()

    def _own_problems(self) -> Iterator[str]:
        if self.router.replicas < 1:
            yield f"router.replicas must be at least 1, got {self.router.replicas}"
        for name in ("port", "http_port"):
            if not 0 <= (port := getattr(self.router, name)) <= 65_535 - self.router.replicas:
                yield f"router.{name} must be a port, with room for all routers, got {port}"
        if not self.mixed.replicas and not (self.prefill.replicas and self.decode.replicas):
            yield "a plan needs prefill and decode instances, or mixed ones"
        if self.affinity not in AFFINITIES:
            yield f"affinity must be of {', '.join(AFFINITIES)}, got {self.affinity!r}"
        if self.affinity == PAIRED and self.prefill.replicas != self.decode.replicas:
            yield (
                f"affinity = 'paired' needs as many prefill as decode instances, "
                f"got {self.prefill.replicas} and {self.decode.replicas}"
            )
        if not 0 <= self.drain_s <= MAX_TIMEOUT_S:
            yield f"drain_s must be 0 to {MAX_TIMEOUT_S:g}, got {self.drain_s}"
        if self.max_surge < 0:
            yield f"max_surge must be at least 0, got {self.max_surge}"


def _pool_problems(name: str, pool: PoolPlan) -> Iterator[str]:
    if pool.replicas < 0:
        yield f"{name}.replicas must be at least 0, got {pool.replicas}"
    for problem in pool.layout.problems():
        yield f"{name}.layout.{problem}"
    if pool.num_cpus < 0 or pool.num_gpus < 0:
        yield f"{name}: num_cpus and num_gpus must be at least 0"


def load_plan(path: Path) -> Plan:
    """Read plan.toml. Raises ConfigError with every unknown key and every problem."""
    return parse_plan(path.read_text(encoding="utf-8"), str(path))


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Read TOML text; see `load_plan`."""
    return parse_as(Plan, text, name)
