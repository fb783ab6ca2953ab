"""How sure a share, or a mean of few runs, is: intervals that hold with 95 % confidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z_95 = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1; beyond, the expansion in
# 1/dof (Abramowitz and Stegun 26.7.5) is right to four digits.
_T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the bounds it lies between."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The larger distance of the value to a bound."""
        return max(self.high - self.value, self.value - self.low)


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


def t_95(dof: int) -> float:
    """Standard errors of a mean, estimated from dof + 1 values, that hold 95 %."""
    if dof <= len(_T_95):
        return _T_95[dof - 1]
    z = 1.959964
    first = (z**3 + z) / (4 * dof)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
    return z + first + second + third


def mean_interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent runs, by Student's t; of a single run nothing is known."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(value=mean, low=-math.inf, high=math.inf)
    half = t_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(value=mean, low=mean - half, high=mean + half)


def share_interval(num_hits: Sequence[int], num_all: Sequence[int]) -> Interval:
    """Of a share that several runs saw: the wider of both intervals at either end.

    Requests of one run depend on one another, which Wilson's does not see; runs that by chance
    agree, and shares of 1, make Student's too narrow. Of one run only the former is known.
    """
    pooled = share(sum(num_hits), sum(num_all))
    if len(num_hits) < 2:
        return _around(pooled.value, pooled.low, pooled.high)
    shares = [hits / num if num else 1.0 for hits, num in zip(num_hits, num_all, strict=True)]
    runs = mean_interval(shares)
    return _around(pooled.value, min(pooled.low, runs.low), max(pooled.high, runs.high))


def _around(value: float, low: float, high: float) -> Interval:
    """Within 0 to 1, and around the value: rounding may put the bound of 1 just below it."""
    return Interval(value=value, low=min(value, max(0.0, low)), high=max(value, min(1.0, high)))
