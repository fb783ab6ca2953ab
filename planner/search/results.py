"""What a search finds: candidates, what they come to, and the order in which they are told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from core.member import Role
from core.parallel import ParallelLayout
from planner.search.bracket import Bracket, Try, bracket
from planner.search.intervals import Interval
from planner.search.steady import Judgement
from planner.sim.spec import Scheduling


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Instances that are all alike."""

    role: Role
    layout: ParallelLayout
    num: int
    hardware: str = ""
    """Name of the GPUs it runs on."""
    scheduling: Scheduling = Scheduling.EXCLUSIVE

    @property
    def num_gpus(self) -> int:
        """Of all its instances."""
        return self.num * self.layout.num_workers

    def __str__(self) -> str:
        on = f" {self.hardware}" if self.hardware else ""
        how = f" {self.scheduling.name.lower()}" if self.role is Role.MIXED else ""
        return f"{self.num} × {self.role.value} {self.layout}{on}{how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A whole cluster, by its pools: a prefill and a decode pool, or one mixed pool."""

    pools: tuple[Pool, ...]
    num_segments: int = 0
    """Above 0: DistServe's low node affinity. The k-th prefill and the k-th decode instance are cut
    into so many segments, and a segment of either shares a host with the other's."""

    @property
    def num_gpus(self) -> int:
        """Of all pools."""
        return sum(pool.num_gpus for pool in self.pools)

    @property
    def is_colocated(self) -> bool:
        """Every instance does both phases."""
        return all(pool.role is Role.MIXED for pool in self.pools)

    @property
    def num_instances(self) -> int:
        """Of all pools."""
        return sum(pool.num for pool in self.pools)

    def __str__(self) -> str:
        how = f", on shared hosts in {self.num_segments} segments" if self.num_segments else ""
        return " + ".join(map(str, self.pools)) + how


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A goodput: it lies between rates that were tried, or that a bound excludes."""

    judgements: tuple[Judgement, ...]
    """In the order tried."""
    most_per_s: float = float("inf")
    """A bound, known without a try."""

    @property
    def _bracket(self) -> Bracket:
        return bracket([Try(each.rate_per_s, each.attains) for each in self.judgements])

    @property
    def low_per_s(self) -> float:
        """The highest rate that attained, with every rate tried below it; 0: none did."""
        return self._bracket.low_per_s

    @property
    def high_per_s(self) -> float:
        """The lowest that did not, or cannot."""
        return min(self._bracket.high_per_s, self.most_per_s)

    @property
    def sure_low_per_s(self) -> float:
        """As `low_per_s`, of rates that attained beyond what chance explains (95 %)."""
        return bracket(
            [Try(each.rate_per_s, each.attains and each.is_sure) for each in self.judgements]
        ).low_per_s

    @property
    def sure_high_per_s(self) -> float:
        """As `high_per_s`, of rates that did not attain beyond what chance explains."""
        missed = (e.rate_per_s for e in self.judgements if e.is_sure and not e.attains)
        return min(self.most_per_s, min(missed, default=float("inf")))

    @property
    def at_low(self) -> Judgement | None:
        """The judgement at `low_per_s`; None where nothing attained."""
        at = (each for each in self.judgements if each.rate_per_s == self.low_per_s)
        return next(at, None)

    def per_gpu(self, num_gpus: int) -> Interval:
        """Goodput per GPU: what attained, and what is sure around it."""
        return Interval(
            value=self.low_per_s / num_gpus,
            low=self.sure_low_per_s / num_gpus,
            high=self.sure_high_per_s / num_gpus,
        )


class Bottleneck(StrEnum):
    """What would have to grow for more."""

    PREFILL = "prefill"
    DECODE = "decode"
    DECODE_ROOM = "decode memory"
    """Answers wait for room before their second token."""
    LINKS = "links"
    """KV waits for the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of the counted requests of several runs; each a value that occurred."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one cluster comes to at one rate."""

    judgement: Judgement
    """Attainment by class."""
    ttft_s: Quantiles
    """Infinite where so many were refused."""
    tpot_s: Quantiles
    slo_scale: float
    """All limits so many times as large would just be attained; at most 1 where they are."""
    bottleneck: Bottleneck
    link_load: float
    """Of the busiest host's way out, 0 to 1; above 1 where transfers do not share it."""
    num_preemptions_per_request: float
    usd_per_million_output_tokens: float
    average_w: float
    provisioned_w: float

    @property
    def rate_per_s(self) -> float:
        """Requests."""
        return self.judgement.rate_per_s

    @property
    def ttft_share(self) -> Interval | None:
        """Who keeps the TTFT limit of their class: marginal, to compare with papers."""
        return self.judgement.watched("ttft")

    @property
    def tpot_share(self) -> Interval | None:
        """As `ttft_share`."""
        return self.judgement.watched("tpot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A candidate, its goodput, and what it comes to at the rate asked for (or at its goodput)."""

    candidate: Candidate
    found: Found
    verdict: Verdict
    after_loss: Judgement | None = None
    """At the verdict's rate, of what the worst loss leaves; None: no spare was asked for."""
    usd_per_hour: float
    notes: tuple[str, ...] = field(default=())
    """What is extrapolated or assumed."""

    @property
    def goodput_rps_per_gpu(self) -> Interval:
        """The glossary's."""
        return self.found.per_gpu(self.candidate.num_gpus)

    @property
    def attains(self) -> bool:
        """At the verdict's rate, and still after a loss."""
        survives = self.after_loss is None or self.after_loss.attains
        return survives and self.verdict.judgement.attains


class Goal(StrEnum):
    """What is best."""

    GOODPUT = "goodput"
    """Most requests per second and GPU."""
    GPUS = "gpus"
    """Fewest GPUs."""
    COST = "cost"
    """Fewest USD per hour at a given rate; most goodput per USD without one."""
    POWER = "power"
    """Fewest watts installed at a given rate; most goodput per watt without one."""


def ranking(found: Sequence[Ranked], goal: Goal, *, has_rate: bool) -> tuple[Ranked, ...]:
    """Best first. Who attains, by the goal; who does not, by goodput. Then fewer GPUs, higher
    goodput per GPU, fewer instances, smaller layouts; and by name, so that no two orders are
    possible."""
    return tuple(sorted(found, key=lambda each: _rank(each, goal, has_rate)))


def _rank(each: Ranked, goal: Goal, has_rate: bool) -> tuple[bool | float | str, ...]:
    candidate = each.candidate
    return (
        not each.attains,
        _loss(each, goal, has_rate) if each.attains else -each.found.low_per_s,
        candidate.num_gpus,
        -each.goodput_rps_per_gpu.value,
        candidate.num_instances,
        max(pool.layout.num_workers for pool in candidate.pools),
        str(candidate),
    )


def _loss(each: Ranked, goal: Goal, has_rate: bool) -> float:
    spent = {
        Goal.GOODPUT: float(each.candidate.num_gpus),
        Goal.GPUS: float(each.candidate.num_gpus),
        Goal.COST: each.usd_per_hour,
        Goal.POWER: each.verdict.provisioned_w,
    }[goal]
    if has_rate and goal is not Goal.GOODPUT:
        return spent
    return -each.found.low_per_s / spent if spent else -each.found.low_per_s
