"""How a cluster is tried at a rate: few short runs first, more only while they leave it open.

All candidates see the same seeds, so that they differ by what they are and not by luck.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from core.slo import Slo
from planner.search.inputs import Simulate, Workload
from planner.search.judges import Judge
from planner.search.steady import Judgement, Sample, Window, judgement, sample
from planner.sim.outcome import Outcome
from planner.sim.spec import UNLIMITED, Cluster
from planner.sim.traffic import MAX_REQUESTS, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How much is simulated before a rate is judged."""

    num_requests: int = 1000
    """At least, of one run."""
    span_s: float = 0.0
    """Of arrivals in one run, at least: several times as long as a request takes, or a large
    cluster would be judged before its first requests have ended."""
    max_requests: int = 200_000
    """Of one run, whatever `span_s` asks for."""
    window: Window = field(default_factory=Window)
    first_runs: int = 3
    max_runs: int = 48
    half_width: float = 0.01
    """Of attainment: no more runs once it is known so well, whatever it is close to."""
    growth: float = 0.1
    """Of the backlog, from the first to the last third of a run; infinite: it is not watched."""
    hopeless: float = 0.1
    """Runs end once attainment can only be so far below the target; infinite: never."""
    seed: int = 0
    """Of the first run; the others follow."""

    def run_length(self, rate_per_s: float) -> int:
        """Requests of one run."""
        wanted = max(self.num_requests, math.ceil(rate_per_s * self.span_s))
        return min(wanted, self.max_requests, MAX_REQUESTS)


def published(num_requests: int) -> Sampling:
    """As DistServe's search judges: one run of so many requests, all of them counted. What it
    finds depends on their number: a short run does not see that a backlog grows."""
    return Sampling(
        num_requests=num_requests,
        window=Window(warm_up=0.0, cool_down=0.0),
        first_runs=1,
        max_runs=1,
        growth=math.inf,
        hopeless=0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """All that is alike for all candidates."""

    simulate: Simulate
    workload: Workload
    judge: Judge
    sampling: Sampling = field(default_factory=Sampling)


def judged(trials: Trials, cluster: Cluster, rate_per_s: float) -> Judgement:
    """Whether the cluster attains what is asked for at this rate."""
    sampling = trials.sampling
    num_requests = sampling.run_length(rate_per_s)
    samples: list[Sample] = []
    for num_runs in _checkpoints(trials):
        for number in range(len(samples), num_runs):
            samples.append(_run(trials, cluster, rate_per_s, sampling.seed + number))
            if len(samples) == min(2, _max_runs(trials)) and all(s.is_cut for s in samples):
                break  # two runs in a row, from the first on, say that it is hopeless
        samples = _whole(trials, cluster, rate_per_s, samples)
        verdict = judgement(
            rate_per_s, trials.judge, samples, num_requests=num_requests, growth=sampling.growth
        )
        if verdict.is_sure or verdict.half_width <= sampling.half_width:
            break
    return verdict


def outcomes(
    trials: Trials, cluster: Cluster, rate_per_s: float, num_runs: int
) -> Iterator[Outcome]:
    """The first runs, whole, one after the other: what quantiles and watts are read from."""
    for number in range(min(num_runs, _max_runs(trials))):
        traffic = _traffic(trials, rate_per_s, trials.sampling.seed + number)
        yield trials.simulate(cluster, traffic)


def whole(trials: Trials) -> Trials:
    """The same, but no run is ended early: its shares are what they are."""
    return replace(trials, sampling=replace(trials.sampling, hopeless=math.inf))


def _checkpoints(trials: Trials) -> Iterator[int]:
    """Numbers of runs after which to look, each twice the one before; of what is the same for
    every seed one run says all."""
    num_runs, most = trials.sampling.first_runs, _max_runs(trials)
    while num_runs < most:
        yield num_runs
        num_runs *= 2
    yield most


def _max_runs(trials: Trials) -> int:
    return trials.sampling.max_runs if trials.workload.is_random else 1


def _whole(
    trials: Trials, cluster: Cluster, rate_per_s: float, samples: list[Sample]
) -> list[Sample]:
    """Where only some were ended early it is close after all: those again, to their end."""
    if all(each.is_cut for each in samples):
        return samples
    again, seed = whole(trials), trials.sampling.seed
    return [
        _run(again, cluster, rate_per_s, seed + number) if each.is_cut else each
        for number, each in enumerate(samples)
    ]


def _run(trials: Trials, cluster: Cluster, rate_per_s: float, seed: int) -> Sample:
    traffic = _traffic(trials, rate_per_s, seed)
    slos = trials.judge.slos
    outcome = trials.simulate(
        cluster, traffic, slos=slos, max_misses=_max_misses(trials, traffic) if slos else UNLIMITED
    )
    return sample(outcome, trials.judge, trials.sampling.window)


def _traffic(trials: Trials, rate_per_s: float, seed: int) -> Traffic:
    num_requests = trials.sampling.run_length(rate_per_s)
    return trials.workload.traffic(rate_per_s, num_requests, seed)


def _max_misses(trials: Trials, traffic: Traffic) -> int:
    """One more, and some criterion is `hopeless` below its target even if everyone who does not
    count missed, too: who misses a limit misses a criterion."""
    sampling = trials.sampling
    if math.isinf(sampling.hopeless):
        return UNLIMITED
    num_requests = len(traffic.arrival_ps)
    begin, end = sampling.window.bounds(num_requests)
    allowed = num_requests - (end - begin)
    columns = zip(trials.judge.criteria, trials.judge.concerns(traffic), strict=True)
    for criterion, concerns in columns:
        if criterion.target > 0:
            share = min(1.0, 1.0 - criterion.target + sampling.hopeless)
            allowed += math.ceil(share * int(np.count_nonzero(concerns[begin:end])))
    return allowed


class Counted:
    """A simulator that counts what it is asked to play, from any number of threads."""

    def __init__(self, simulate: Simulate) -> None:
        self._simulate = simulate
        self._lock = Lock()
        self._num_runs = 0
        self._num_requests = 0

    def __call__(
        self,
        cluster: Cluster,
        traffic: Traffic,
        *,
        slos: tuple[Slo, ...] = (),
        max_misses: int = UNLIMITED,
    ) -> Outcome:
        """Play it."""
        outcome = self._simulate(cluster, traffic, slos=slos, max_misses=max_misses)
        with self._lock:
            self._num_runs += 1
            self._num_requests += len(traffic.arrival_ps)
        return outcome

    @property
    def num_runs(self) -> int:
        """So far."""
        return self._num_runs

    @property
    def num_requests(self) -> int:
        """So far; those of runs that were ended early, too."""
        return self._num_requests
