"""How many instances of each phase: arithmetic first, then the whole cluster has to pass.

Two phases that keep their limits for 90 % of the requests each, independently, keep both for 81 %:
DistServe's n = ceil(R / goodput) is where the search begins, and joint simulation is what decides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.search.budget import Amounts, less, num_affordable
from planner.search.judges import MARGINALS
from planner.search.steady import Judgement

Counts = tuple[int, ...]
"""Instances of each pool; of a prefill and a decode pool in this order."""

GROWTH = 0.05
"""Of a pool, at least one instance, the first time that its phase misses; twice as many each time
in a row. Shrinking comes after."""
MAX_STEPS = 40
MAX_VAIN_STEPS = 3
"""In a row, without which more of a pool is no help: something else is in want, links say."""
PROGRESS = 0.005
"""In shares of requests: what counts as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """Counts that pass; or the largest that were tried and did not."""

    counts: Counts
    judgement: Judgement
    tried: tuple[tuple[Counts, Judgement], ...]
    """All, in order."""


Attempt = Callable[[Counts], Judgement | None]
"""Judges a cluster of so many instances; None where there is no room for them."""


def instances_for(rate_per_s: float, goodputs_per_s: Sequence[float]) -> Counts:
    """DistServe's n and m: so many instances, each with this goodput in its own phase."""
    # A hair less than what 3 · 0.1 / 0.1 may come to.
    return tuple(max(1, math.ceil(rate_per_s / each - 1e-9)) for each in goodputs_per_s)


def sized(start: Counts, attempt: Attempt) -> Sized | None:
    """Grow from `start` whichever phase misses until the whole passes, then take away what is not
    needed. None where not even `start` has room."""
    memory: dict[Counts, Judgement | None] = {}

    def judge(counts: Counts) -> Judgement | None:
        if counts not in memory:
            memory[counts] = attempt(counts)
        return memory[counts]

    counts = _grown(start, judge)
    if counts is not None and passes(judge(counts)):
        counts = _shrunk(counts, judge)
    judgement = None if counts is None else judge(counts)
    if counts is None or judgement is None:
        return None
    tried = tuple((c, j) for c, j in memory.items() if j is not None)
    return Sized(counts=counts, judgement=judgement, tried=tried)


def passes(judgement: Judgement | None) -> bool:
    """What has no room does not."""
    return judgement is not None and judgement.attains


def _grown(start: Counts, judge: Attempt) -> Counts | None:
    """Counts that pass; else the last that had room, or that more of a phase was no help to."""
    growth = _Growth(phase=0, step=0, share=-1.0, num_vain=0)
    counts, last = start, None
    for _ in range(MAX_STEPS):
        judgement = judge(counts)
        if judgement is None and growth.step > 1 and last is not None:
            growth = growth._replace(step=1)  # too large a step: what fits is tried, too
            counts = _with(last, growth.phase, last[growth.phase] + 1)
            continue
        if judgement is None:
            return last
        growth = _next_growth(growth, counts, judgement)
        if judgement.attains or growth.num_vain > MAX_VAIN_STEPS:
            return counts
        last = counts
        counts = _with(counts, growth.phase, counts[growth.phase] + growth.step)
    return last


class _Growth(NamedTuple):
    """Of one phase, several times in a row."""

    phase: int
    step: int
    share: float
    """The most that kept its limit so far."""
    num_vain: int
    """Steps since then."""


def _next_growth(before: _Growth, counts: Counts, judgement: Judgement) -> _Growth:
    phase = min(missing(judgement), len(counts) - 1)
    watched = judgement.watched(MARGINALS[phase])
    share = judgement.worst.share.value if watched is None else watched.value
    if phase != before.phase or not before.step:
        return _Growth(phase, _first_step(counts[phase]), share, 0)
    if share > before.share + PROGRESS:
        return _Growth(phase, 2 * before.step, share, 0)
    return before._replace(step=2 * before.step, num_vain=before.num_vain + 1)


def _first_step(num: int) -> int:
    return max(1, math.ceil(GROWTH * num))


def missing(judgement: Judgement) -> int:
    """Which phase is in want: 0, prefill, or 1.

    Decode if too few keep their TPOT, whatever TTFT comes to: KV that finds no room keeps prefill
    from going on, but not the other way round. Else prefill if too few keep their TTFT; else, where
    each is enough and both together are not, the weaker one.
    """
    ttft, tpot = judgement.watched("ttft"), judgement.watched("tpot")
    if ttft is None or tpot is None:
        return 0
    target = judgement.worst.criterion.target
    if tpot.value < target:
        return 1
    return 0 if ttft.value < max(target, tpot.value) else 1


def _with(counts: Counts, phase: int, num: int) -> Counts:
    return (*counts[:phase], num, *counts[phase + 1 :])


def _shrunk(counts: Counts, judge: Attempt) -> Counts:
    """One pool after the other, until none can do with less; what is left has passed."""
    while True:
        before = counts
        for phase in range(len(counts)):
            counts = _with(counts, phase, _fewest(counts, phase, judge))
        if counts == before:
            return counts


def _fewest(counts: Counts, phase: int, judge: Attempt) -> int:
    """By steps that double while they pass, then by halves: more of a pool never do worse but for
    chance, and where chance decides, whatever passed counts."""
    enough, step = counts[phase], 1
    while enough > 1:
        fewer = max(1, enough - step)
        if not passes(judge(_with(counts, phase, fewer))):
            return _between(fewer, enough, lambda num: passes(judge(_with(counts, phase, num))))
        enough, step = fewer, 2 * step
    return enough


def _between(too_few: int, enough: int, is_enough: Callable[[int], bool]) -> int:
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def splits(budget: Amounts, costs: tuple[Amounts, Amounts]) -> Iterator[tuple[int, int]]:
    """Every (n, m) to which no instance of either kind can be added within the budget."""
    prefill, decode = costs
    for n in range(1, num_affordable(less(budget, decode, 1), prefill) + 1):
        left = less(budget, prefill, n)
        m = num_affordable(left, decode)
        if not num_affordable(less(left, decode, m), prefill):
            yield n, m
