"""Splitwise's provisioning: the cheapest machines for a load, or the most load for a budget.

More machines of either slot are taken to do no worse. What is found has been simulated; that
nothing cheaper passes rests on this, and on the smallest counts that work conservation allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import inf

from core.errors import ConfigError
from planner.search.bounds import bounds
from planner.search.bracket import Search
from planner.search.cheapest import Cheapest, splits
from planner.search.goodput import FIRST_SHARE, find
from planner.search.machines import Budget, Counts, Design, Saving
from planner.search.results import Found
from planner.search.spare import Spare, impossible, judged_with
from planner.search.steady import Judgement
from planner.search.trials import Trials
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic

SAMPLE = 4000
"""Requests that bounds are read from."""


class TieBreak(StrEnum):
    """Which of equally good counts is named; the others are listed beside it."""

    FEWEST_WRITERS = "fewest machines that write answers"
    """More that read: prompts come in bursts, and Splitwise's Fig. 12 chose so."""
    FEWEST_READERS = "fewest machines that read prompts"
    MOST_MARGIN = "most attainment to spare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What has to be served, and how it is judged."""

    trials: Trials
    spare: Spare = Spare.NONE
    """N + 1: also with any one machine gone. A machine is a host: both kinds mean the same."""
    sample: Traffic

    def judge(self, cluster: Cluster, rate_per_s: float) -> Judgement:
        """By arithmetic where it is beyond doubt, else by simulation."""
        if rate_per_s > self.most_per_s(cluster):
            return impossible(self.trials, rate_per_s)
        return judged_with(self.trials, cluster, rate_per_s, self.spare)

    def most_per_s(self, cluster: Cluster) -> float:
        """No rate above it can attain."""
        return bounds(cluster, self.sample, self.trials.workload.classes).most_per_s


def load_of(trials: Trials, spare: Spare = Spare.NONE) -> Load:
    """With a sample of the work."""
    sample = trials.workload.traffic(1.0, SAMPLE, trials.sampling.seed)
    return Load(trials=trials, spare=spare, sample=sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """Machines of one design."""

    design: Design
    counts: Counts
    judgement: Judgement
    """At the load, or at the goodput."""
    found: Found | None = None
    """Its goodput, where that was asked for."""
    ties: tuple[Counts, ...] = ()
    """Other counts that were found to be as good, in the tie-break's order."""

    @property
    def num_machines(self) -> int:
        """Of all slots."""
        return sum(self.counts)

    def spent(self, saving: Saving) -> float:
        """By all machines."""
        return self.design.spent(self.counts, saving)


def cheapest(
    design: Design,
    load: Load,
    rate_per_s: float,
    *,
    saving: Saving = Saving.MACHINES,
    budget: Budget | None = None,
    tie_break: TieBreak = TieBreak.FEWEST_WRITERS,
) -> Provisioned | None:
    """Iso-throughput: fewest machines, USD or watts at this rate; None: not within the budget.

    Raises ConfigError for machines that cost nothing of what is to be saved.
    """
    if free := [s.machine.name for s in design.slots if s.machine.cost(saving) <= 0]:
        raise ConfigError(tuple(f"{name}: {saving.value} is not known" for name in free))
    judge = partial(load.judge, rate_per_s=rate_per_s)
    search = Cheapest(design, saving, budget or Budget(), judge)
    found = sorted(search.run(), key=lambda each: _tie(each, search.judge(each), tie_break))
    if not found:
        return None
    return Provisioned(
        design=design,
        counts=found[0],
        judgement=search.judge(found[0]),
        ties=tuple(found[1:]),
    )


def _tie(counts: Counts, judgement: Judgement, tie_break: TieBreak) -> tuple[float, Counts]:
    if tie_break is TieBreak.MOST_MARGIN:
        return -judgement.worst.margin, counts
    return float(counts[-1] if tie_break is TieBreak.FEWEST_WRITERS else counts[0]), counts


def most_throughput(
    design: Design, load: Load, budget: Budget, *, precision: float = 0.05
) -> Provisioned | None:
    """Iso-power or iso-cost: the split of the budget with the highest goodput; None: none attains
    anything. Those that a bound allows most come first; one that does not beat the best so far at
    a rate above its goodput is not looked at further.

    Raises ConfigError for a budget without an end.
    """
    if all(limit == inf for limit in budget.limits.values()):
        raise ConfigError(("a budget of machines, USD per hour or watts is needed",))
    clusters = ((counts, design.cluster(counts)) for counts in splits(design, budget))
    limited = [(load.most_per_s(cluster), counts, cluster) for counts, cluster in clusters]
    best: Provisioned | None = None
    low_per_s = 0.0
    for most_per_s, counts, cluster in sorted(limited, key=lambda each: (-each[0], each[1])):
        first_per_s = max(FIRST_SHARE * most_per_s, (1 + precision) * low_per_s)
        if most_per_s <= first_per_s:
            continue
        if best and not load.judge(cluster, (1 + precision) * low_per_s).attains:
            continue
        search = Search(
            first_rate_per_s=first_per_s, most_rate_per_s=most_per_s, precision=precision
        )
        found = find(partial(load.judge, cluster), search)
        if found.at_low is not None and found.low_per_s > low_per_s:
            low_per_s = found.low_per_s
            best = Provisioned(design=design, counts=counts, judgement=found.at_low, found=found)
    return best


def by_saving(found: Sequence[Provisioned], saving: Saving) -> tuple[Provisioned, ...]:
    """Cheapest first, then fewest machines, then by the design's name."""

    def order(each: Provisioned) -> tuple[float, int, str]:
        return each.spent(saving), each.num_machines, each.design.name

    return tuple(sorted(found, key=order))


def by_throughput(found: Sequence[Provisioned]) -> tuple[Provisioned, ...]:
    """Highest goodput first, then fewest machines, then by the design's name."""

    def order(each: Provisioned) -> tuple[float, int, str]:
        return -_goodput(each), each.num_machines, each.design.name

    return tuple(sorted(found, key=order))


def _goodput(each: Provisioned) -> float:
    return each.found.low_per_s if each.found else 0.0
