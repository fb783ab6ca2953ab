"""Splitwise's sizing arithmetic: how many machines of one kind equal others in power or cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineBudget:
    """What one machine takes; only ratios matter."""

    power: float
    """No unit was published; perhaps kW per rack of four."""
    cost: float
    """Per hour, no currency published."""


DGX_A100_USD_PER_HOUR, DGX_H100_USD_PER_HOUR = 17.6, 38.0
"""Of a machine of eight GPUs: Splitwise, table I (2024)."""
# As in the published notebook.
DGX_A100 = MachineBudget(power=24.8, cost=2.21)
DGX_H100 = MachineBudget(power=44.0, cost=4.76)
CAPPED_MACHINE_SHARE = 0.7
"""Of a DGX-H100's power, with each of its GPUs capped to half."""
DGX_H100_CAPPED = MachineBudget(power=CAPPED_MACHINE_SHARE * 44.0, cost=4.76)


def equal_power(kind: MachineBudget, *, of: MachineBudget, num: int) -> int:
    """Machines of `kind` that `num` of another draw as much power as."""
    return int(of.power * num // kind.power)


def equal_cost(kind: MachineBudget, *, of: MachineBudget, num: int) -> int:
    """Machines of `kind` that `num` of another cost as much as."""
    return int(of.cost * num // kind.cost)
