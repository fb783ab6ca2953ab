"""Which clusters are simulated as a whole: arithmetic over what single instances attained.

For a rate: n = ceil(R / goodput) of every pair of layouts. For a budget of GPUs: its best splits.
DistServe's algorithms take the best layout of each phase; the best pair of *integers* may be
another, so all pairs are compared, and its own choice is always among those that are simulated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from planner.search.budget import Amounts, Budget, amounts, num_affordable
from planner.search.candidates import times_as_many
from planner.search.fleet import Fleet, cluster_of, hosts_of, spent
from planner.search.joint import Counts, instances_for, splits
from planner.search.results import Candidate, Goal, Pool
from planner.search.screen import Screened, best
from planner.search.setting import Setting

SPLITS_PER_PAIR = 2
"""Of a budget: the ratio of the phases is seldom further off than by one instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A cluster, and what single instances say of it."""

    candidate: Candidate
    estimate_per_s: float
    """The weaker phase's goodput, times its instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for."""

    goal: Goal
    rate_per_s: float | None
    """None: as much as there can be."""
    budget: Budget

    def has_room(self, fleet: Fleet, candidate: Candidate) -> bool:
        """Within the budget, and within the hosts there are."""
        is_paid = num_affordable(self.budget.amounts, amounts(fleet, candidate)) > 0
        return is_paid and hosts_of(fleet, candidate) is not None


def of_pairs(
    fleet: Fleet, prefill: Sequence[Screened], decode: Sequence[Screened], wanted: Wanted
) -> Iterator[Listed]:
    """Algorithm 1: each phase's instances are free to be anywhere."""
    for pair in product(_attaining(prefill), _attaining(decode)):
        base = Candidate(pools=tuple(each.pool for each in pair))
        goodputs = [each.goodput_per_s for each in pair]
        made = [_listed(base, goodputs, counts) for counts in _counts_of_pair(fleet, pair, wanted)]
        yield from sorted(made, key=lambda each: -each.estimate_per_s)[:SPLITS_PER_PAIR]


def _counts_of_pair(fleet: Fleet, pair: Sequence[Screened], wanted: Wanted) -> Iterator[Counts]:
    if wanted.rate_per_s is not None:
        yield instances_for(wanted.rate_per_s, [each.goodput_per_s for each in pair])
    else:
        first, second = (amounts(fleet, Candidate(pools=(each.pool,))) for each in pair)
        yield from splits(wanted.budget.amounts, (first, second))


def of_units(
    fleet: Fleet,
    units: Sequence[Candidate],
    prefill: Sequence[Screened],
    decode: Sequence[Screened],
    wanted: Wanted,
) -> Iterator[Listed]:
    """Algorithm 2: pairs that share hosts, as many of one phase as of the other."""
    goodputs = _goodputs(prefill), _goodputs(decode)
    for unit in units:
        each = [known.get(pool, 0.0) for known, pool in zip(goodputs, unit.pools, strict=True)]
        for num in _numbers(min(each), amounts(fleet, unit), wanted):
            yield _listed(unit, each, (num, num))


def of_mixed(fleet: Fleet, mixed: Sequence[Screened], wanted: Wanted) -> Iterator[Listed]:
    """Colocated."""
    for each in mixed:
        base = Candidate(pools=(each.pool,))
        for num in _numbers(each.goodput_per_s, amounts(fleet, base), wanted):
            yield _listed(base, [each.goodput_per_s], (num,))


def _attaining(found: Sequence[Screened]) -> list[Screened]:
    return [each for each in found if each.goodput_per_s > 0]


def _goodputs(found: Sequence[Screened]) -> Mapping[Pool, float]:
    return {each.pool: each.goodput_per_s for each in found}


def _numbers(goodput_per_s: float, each: Amounts, wanted: Wanted) -> Iterator[int]:
    """Of units of such a cost: what the rate needs, or what the budget gives."""
    if goodput_per_s <= 0:
        return
    if wanted.rate_per_s is not None:
        yield instances_for(wanted.rate_per_s, [goodput_per_s])[0]
    elif num := num_affordable(wanted.budget.amounts, each):
        yield num


def _listed(base: Candidate, goodputs: Sequence[float], counts: Counts) -> Listed:
    weakest = min(each * num for each, num in zip(goodputs, counts, strict=True))
    return Listed(candidate=times_as_many(base, counts), estimate_per_s=weakest)


def shortlist(
    listed: Sequence[Listed],
    setting: Setting,
    wanted: Wanted,
    *,
    num: int,
    always: Candidate | None,
) -> tuple[Listed, ...]:
    """The best by estimate of those that have room and that no bound excludes; and `always`, by its
    layouts."""
    short: list[Listed] = []
    for each in sorted(listed, key=lambda each: _order(each, setting.fleet, wanted)):
        is_own = always is not None and _is_like(each.candidate, always)
        if (len(short) < num or is_own) and _is_able(each, setting, wanted):
            short.append(each)
            always = None if is_own else always
        if len(short) >= num and always is None:
            break
    return tuple(short)


def _is_able(each: Listed, setting: Setting, wanted: Wanted) -> bool:
    """Links are not asked about in the phases' own goodputs: here they are."""
    if not wanted.has_room(setting.fleet, each.candidate):
        return False
    limit = setting.bounds(cluster_of(setting.fleet, each.candidate))
    return limit.links_per_s >= (wanted.rate_per_s or 0.0)


def _order(each: Listed, fleet: Fleet, wanted: Wanted) -> tuple[float, float, str]:
    cost = spent(fleet, each.candidate, wanted.goal)
    per_cost = -each.estimate_per_s / cost if cost else -each.estimate_per_s
    name = str(each.candidate)
    return (per_cost, cost, name) if wanted.rate_per_s is None else (cost, per_cost, name)


def _is_like(candidate: Candidate, other: Candidate) -> bool:
    return times_as_many(candidate, [1] * len(candidate.pools)) == other


def algorithm_1(prefill: Sequence[Screened], decode: Sequence[Screened]) -> Candidate | None:
    """DistServe's own choice: each phase's best per GPU."""
    pair = best(prefill), best(decode)
    if pair[0] is None or pair[1] is None:
        return None
    return Candidate(pools=(pair[0].pool, pair[1].pool))
