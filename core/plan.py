"""plan.toml: how many instances of each kind, with which parallelism. The planner writes it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.config import parse_as
from core.parallel import ParallelLayout

SCHEMA = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPlan:
    """The routers."""

    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the cluster is to look like."""

    schema: int = SCHEMA
    model: str = ""
    """A model folder, a .gguf file, hf:ORG/NAME@COMMIT, or empty for the default model."""
    prefill: PoolPlan = field(default_factory=PoolPlan)
    decode: PoolPlan = field(default_factory=PoolPlan)
    mixed: PoolPlan = field(default_factory=lambda: PoolPlan(replicas=0))
    router: RouterPlan = field(default_factory=RouterPlan)

    @property
    def num_ranks(self) -> int:
        """Processes that compute, of all instances."""
        pools = (self.prefill, self.decode, self.mixed)
        return sum(pool.replicas * pool.layout.num_workers for pool in pools)

    @property
    def layouts(self) -> frozenset[ParallelLayout]:
        """Of all instances that it asks for."""
        pools = (self.prefill, self.decode, self.mixed)
        return frozenset(pool.layout for pool in pools if pool.replicas)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.schema != SCHEMA:
            yield f"schema must be {SCHEMA}, got {self.schema}"
        for name in ("prefill", "decode", "mixed"):
            yield from _pool_problems(name, getattr(self, name))
        if self.router.replicas < 1:
            yield f"router.replicas must be at least 1, got {self.router.replicas}"
        if not self.mixed.replicas and not (self.prefill.replicas and self.decode.replicas):
            yield "a plan needs prefill and decode instances, or mixed ones"


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
