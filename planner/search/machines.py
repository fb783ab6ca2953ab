"""Splitwise's cluster designs: which machines read prompts, which write answers, what they cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from math import inf

from core.member import Role
from planner.search.budget import affordable
from planner.sim.spec import MIXED_POOL, Cluster, Instance, Kind, Network

Counts = tuple[int, ...]
"""Machines of each slot of a design."""
ANY_COUNT = 1_000_000
"""More than is ever planned for."""


class Saving(StrEnum):
    """What there is to be little of."""

    MACHINES = "machines"
    COST = "usd per hour"
    POWER = "provisioned watts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One type, as one instance of its kind on a host of its own; a power-capped type is another
    one, with other times and another `provisioned_w`."""

    name: str
    kind: Kind
    max_count: int = ANY_COUNT
    """That are owned, or can be had."""

    def cost(self, saving: Saving) -> float:
        """Of one."""
        if saving is Saving.COST:
            return self.kind.price_usd_per_hour
        return self.kind.power.provisioned_w if saving is Saving.POWER else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent, all of it together."""

    max_machines: float = inf
    max_usd_per_hour: float = inf
    max_w: float = inf
    """Provisioned."""

    @property
    def limits(self) -> dict[Saving, float]:
        """Of each kind of spending."""
        return {
            Saving.MACHINES: self.max_machines,
            Saving.COST: self.max_usd_per_hour,
            Saving.POWER: self.max_w,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Machines of a design that do the same."""

    role: Role
    machine: Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A reading and a writing slot, or one that does both."""

    name: str
    slots: tuple[Slot, ...]
    network: Network = field(default_factory=Network)
    placement: str = MIXED_POOL
    pairs_at_arrival: bool = True

    def cluster(self, counts: Counts) -> Cluster:
        """Of so many machines in each slot."""
        numbered = zip(range(len(self.slots)), self.slots, counts, strict=True)
        places = [(number, slot.role) for number, slot, count in numbered for _ in range(count)]
        return Cluster(
            kinds=tuple(slot.machine.kind for slot in self.slots),
            instances=tuple(
                Instance(kind=kind, role=role, host=host)
                for host, (kind, role) in enumerate(places)
            ),
            network=self.network,
            placement=self.placement,
            pairs_at_arrival=self.pairs_at_arrival,
        )

    def spent(self, counts: Counts, saving: Saving) -> float:
        """By all machines."""
        pairs = zip(self.slots, counts, strict=True)
        return sum(count * slot.machine.cost(saving) for slot, count in pairs)

    def most(self, counts: Counts, slot: int, budget: Budget) -> int:
        """Machines of one slot that budget and inventory leave, the others being as they are."""
        machine, others = self.slots[slot].machine, with_count(counts, slot, 0)
        most = machine.max_count - self._owned_by_others(others, machine)
        for saving, limit in budget.limits.items():
            each = machine.cost(saving)
            if each > 0 and limit < inf:
                left = limit - self.spent(others, saving)
                most = min(most, affordable(left, each))
        return max(0, most)

    def _owned_by_others(self, others: Counts, machine: Machine) -> int:
        pairs = zip(self.slots, others, strict=True)
        return sum(count for slot, count in pairs if slot.machine.name == machine.name)

    def is_within(self, counts: Counts, budget: Budget) -> bool:
        """Neither budget nor inventory is exceeded."""
        slots = range(len(self.slots))
        return all(counts[slot] <= self.most(counts, slot, budget) for slot in slots)


def with_count(counts: Counts, slot: int, count: int) -> Counts:
    """The same but for one slot."""
    return (*counts[:slot], count, *counts[slot + 1 :])


def designs(
    machines: Sequence[Machine], *, network: Network | None = None, placement: str = MIXED_POOL
) -> Iterator[Design]:
    """Every pair of types, and each type by itself doing both: Splitwise's AA, HH, HA, HHcap and
    its baselines, of whatever types there are."""
    shared = Network() if network is None else network
    for reads, writes in product(machines, machines):
        yield Design(
            name=f"{reads.name} reads, {writes.name} writes",
            slots=(Slot(role=Role.PREFILL, machine=reads), Slot(role=Role.DECODE, machine=writes)),
            network=shared,
            placement=placement,
        )
    for each in machines:
        yield Design(
            name=f"{each.name} does both",
            slots=(Slot(role=Role.MIXED, machine=each),),
            network=shared,
            placement="jsq",
        )
