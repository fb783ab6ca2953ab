"""What one run says, and what several together do: shares with intervals, and the backlog's trend.

Counted are the requests between a warm-up, in which the system fills, and the last ones, around
which it empties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.search.intervals import Interval, mean_interval, share_interval
from planner.search.judges import Criterion, Judge
from planner.sim.outcome import Outcome

NOISE = 3.0
"""Standard deviations. In a steady state the number in flight spreads about as a Poisson number of
its mean does, near the limit more: of that several runs tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which requests of a run count, by shares of their number."""

    warm_up: float = 0.2
    cool_down: float = 0.1

    def bounds(self, num_requests: int) -> tuple[int, int]:
        """First that counts, and first that does not any more."""
        begin = min(num_requests - 1, math.ceil(self.warm_up * num_requests))
        return begin, max(begin + 1, num_requests - math.floor(self.cool_down * num_requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Mean number of requests in flight in the first and in the last third of a window."""

    first: float
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run."""

    num_hits: tuple[int, ...]
    """By criterion, of the counted requests that it is about."""
    num_all: tuple[int, ...]
    trend: Trend
    is_cut: bool
    """It was ended early: too many had missed. The shares are at most what is said."""


def sample(outcome: Outcome, judge: Judge, window: Window) -> Sample:
    """Judge one run."""
    begin, end = window.bounds(len(outcome.first_token_ps))
    concerns = [column[begin:end] for column in judge.concerns(outcome.traffic)]
    kept = [column[begin:end] for column in judge.kept(outcome)]
    return Sample(
        num_hits=tuple(int((c & k).sum()) for c, k in zip(concerns, kept, strict=True)),
        num_all=tuple(int(c.sum()) for c in concerns),
        trend=trend(outcome, begin, end),
        is_cut=bool(((outcome.last_token_ps < 0) & ~outcome.is_refused).any()),
    )


def trend(outcome: Outcome, begin: int, end: int) -> Trend:
    """Over the time in which requests `begin` to `end` arrive."""
    arrivals = outcome.traffic.arrival_ps
    from_ps, to_ps = int(arrivals[begin]), int(arrivals[end - 1])
    third = (to_ps - from_ps) // 3
    return Trend(
        first=_mean_in_flight(outcome, from_ps, from_ps + third),
        last=_mean_in_flight(outcome, to_ps - third, to_ps),
    )


def _mean_in_flight(outcome: Outcome, from_ps: int, to_ps: int) -> float:
    if to_ps <= from_ps:
        return 0.0
    begins, ends = outcome.traffic.arrival_ps, outcome.last_token_ps
    ends = np.where(ends < 0, np.where(outcome.is_refused, begins, to_ps), ends)
    # As floats: the sum over a million requests in a long run does not fit into 64 bits.
    spent = np.minimum(ends, to_ps).astype(np.float64) - np.maximum(begins, from_ps)
    return float(np.maximum(spent, 0.0).sum() / (to_ps - from_ps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What several runs say of one criterion."""

    criterion: Criterion
    share: Interval

    @property
    def attains(self) -> bool:
        """As measured."""
        return self.share.value >= self.criterion.target

    @property
    def is_sure(self) -> bool:
        """Chance does not explain the verdict (95 %)."""
        target = self.criterion.target
        return self.share.low >= target if self.attains else self.share.high < target

    @property
    def margin(self) -> float:
        """Above 0: more than was asked for."""
        return self.share.value - self.criterion.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What several runs at one rate come to."""

    rate_per_s: float
    judged: tuple[Judged, ...]
    is_steady: bool
    """The backlog does not grow: longer runs would come to the same."""
    is_cut: bool
    """Hopeless: all runs were ended early, and the shares are at most what is said."""
    num_runs: int
    num_requests: int
    """Of each run."""

    @property
    def attains(self) -> bool:
        """A growing backlog misses any target once the run is long enough."""
        return self.is_steady and not self.is_cut and all(each.attains for each in self.judged)

    @property
    def is_sure(self) -> bool:
        """Whether chance does not explain the verdict (95 %)."""
        if self.attains:
            return all(each.is_sure for each in self.judged)
        if not self.is_steady or self.is_cut:
            return True
        return any(each.is_sure for each in self.judged if not each.attains)

    @property
    def half_width(self) -> float:
        """Of the least sure criterion that the verdict rests on; 0 where none is unsure."""
        unsure = [each.share.half_width for each in self.judged if not each.is_sure]
        return 0.0 if self.is_sure else max(unsure)

    @property
    def worst(self) -> Judged:
        """What binds: the criterion with the least margin, the first of equals."""
        return min(self.asked, key=lambda each: each.margin)

    @property
    def asked(self) -> tuple[Judged, ...]:
        """Of criteria that something is asked of."""
        return tuple(each for each in self.judged if each.criterion.target > 0)

    def watched(self, name: str) -> Interval | None:
        """One of `judges.MARGINALS`; None where the judge does not watch it."""
        shares = (e.share for e in self.judged if e.criterion.name == f"marginal {name}")
        return next(shares, None)


def judgement(
    rate_per_s: float, judge: Judge, samples: Sequence[Sample], *, num_requests: int, growth: float
) -> Judgement:
    """Of independent runs; `growth` as in `Sampling`."""
    columns = zip(
        judge.criteria,
        zip(*(each.num_hits for each in samples), strict=True),
        zip(*(each.num_all for each in samples), strict=True),
        strict=True,
    )
    return Judgement(
        rate_per_s=rate_per_s,
        judged=tuple(Judged(criterion=c, share=share_interval(h, n)) for c, h, n in columns),
        is_steady=not grows([each.trend for each in samples], growth),
        is_cut=all(each.is_cut for each in samples),
        num_runs=len(samples),
        num_requests=num_requests,
    )


def grows(trends: Sequence[Trend], growth: float) -> bool:
    """Whether requests pile up, by more than `growth` of the first third and more than chance:
    than a Poisson number's, and than that which runs differ by.

    A small excess is let pass: near its limit a system is long in getting where it will stay.
    """
    first = max(1.0, sum(each.first for each in trends) / len(trends))
    rises = mean_interval([each.last - each.first for each in trends])
    if rises.value <= max(growth * first, NOISE * math.sqrt(first / len(trends))):
        return False
    return len(trends) == 1 or rises.low > 0
