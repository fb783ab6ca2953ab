"""What many values come to: quantiles of latencies."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


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
