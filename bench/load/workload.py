"""Workloads at any rate: drawn from distributions, or a recorded trace played faster or slower."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from math import inf
from random import Random
from typing import Protocol

from bench.load.lengths import DrawPair
from bench.load.times import arrival_times
from core.errors import ConfigError
from planner.workload.trace import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a workload ends: at whichever comes first."""

    duration_s: float = inf
    max_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests, by arrival."""

    rows: Sequence[TraceRow]
    duration_s: float
    """Arrivals fall into [0, duration_s]."""
    rate_per_s: float
    """Meant; what the rows come to may differ by chance."""


class Source(Protocol):
    """Makes workloads that differ in nothing but the rate; one seed, one workload."""

    def workload(self, *, rate_per_s: float, extent: Extent, seed: int) -> Workload:
        """At least one request, or ConfigError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Arrivals and lengths at random."""

    process: str
    """One of times.PROCESSES."""
    burstiness: float = 1.0
    lengths: DrawPair

    def workload(self, *, rate_per_s: float, extent: Extent, seed: int) -> Workload:
        """Lengths and times are drawn apart: at another rate the lengths are the same."""
        rng = Random(f"lengths {seed}")
        times = arrival_times(self.process, Random(f"times {seed}"), rate_per_s, self.burstiness)
        rows = []
        for at_s in _cut(times, extent):
            num_prompt_tokens, num_output_tokens = self.lengths(rng)
            rows.append(
                TraceRow(
                    at_s=at_s,
                    num_prompt_tokens=num_prompt_tokens,
                    num_output_tokens=num_output_tokens,
                )
            )
        return _workload(rows, rate_per_s, extent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A trace, its time scaled so that its mean rate is the one asked for."""

    rows: Sequence[TraceRow]

    @property
    def rate_per_s(self) -> float:
        """As recorded."""
        span_s = self.rows[-1].at_s
        return len(self.rows) / span_s if span_s else float(len(self.rows))

    def workload(self, *, rate_per_s: float, extent: Extent, seed: int) -> Workload:
        """The seed changes nothing here: it decides what the prompts say."""
        speed = rate_per_s / self.rate_per_s
        times = _cut((row.at_s / speed for row in self.rows), extent)
        rows = [replace(row, at_s=at_s) for row, at_s in zip(self.rows, times, strict=False)]
        return _workload(rows, rate_per_s, extent)


def _cut(times: Iterable[float], extent: Extent) -> Iterable[float]:
    return islice(takewhile(lambda at_s: at_s < extent.duration_s, times), extent.max_requests)


def _workload(rows: Sequence[TraceRow], rate_per_s: float, extent: Extent) -> Workload:
    if not rows:
        raise ConfigError(
            (f"no request arrives within {extent.duration_s:g} s at {rate_per_s:g} a second",)
        )
    # A workload that ran out of requests ends with its last one, not with its time.
    is_cut = len(rows) == extent.max_requests or extent.duration_s == inf
    duration_s = rows[-1].at_s if is_cut else extent.duration_s
    return Workload(rows=rows, duration_s=duration_s, rate_per_s=rate_per_s)
