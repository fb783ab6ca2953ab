"""What many values come to: quantiles of latencies, and how sure a share of few requests is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Z_95 = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of values of one unit. A quantile is a value that was measured, the smallest that such a
    share of all are not above: nothing is interpolated."""

    num_values: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def spread(values: Iterable[float]) -> Spread | None:
    """None of no values at all."""
    measured = np.fromiter(values, dtype=np.float64)
    if not measured.size:
        return None
    quantiles = np.quantile(measured, (0.5, 0.9, 0.95, 0.99), method="inverted_cdf")
    p50, p90, p95, p99 = map(float, quantiles)
    return Spread(
        num_values=measured.size,
        mean=float(measured.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(measured.max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of all, 0 to 1, and between which bounds it lies with 95 % confidence."""

    num_hits: int
    num_all: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """As measured; of none at all nothing missed: 1, as in core.slo."""
        return self.num_hits / self.num_all if self.num_all else 1.0


def share(num_hits: int, num_all: int) -> Share:
    """With Wilson's interval, which stays inside 0 to 1 and holds near its ends (Wilson 1927)."""
    if not num_all:
        return Share(num_hits=0, num_all=0, low=0.0, high=1.0)
    p, z2 = num_hits / num_all, Z_95**2
    scale = 1 + z2 / num_all
    center = (p + z2 / (2 * num_all)) / scale
    half = Z_95 * math.sqrt(p * (1 - p) / num_all + z2 / (4 * num_all**2)) / scale
    return Share(
        num_hits=num_hits,
        num_all=num_all,
        low=max(0.0, center - half),
        high=min(1.0, center + half),
    )
