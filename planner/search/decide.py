"""One candidate, simulated as a whole: how many instances it needs, its goodput, its verdict."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from core.member import Role
from planner.search.bracket import Search
from planner.search.candidates import times_as_many
from planner.search.fleet import cluster_of, usd_per_hour
from planner.search.goodput import find
from planner.search.joint import Counts, Sized, sized
from planner.search.results import Candidate, Found, Ranked, Verdict
from planner.search.setting import Setting
from planner.search.shortlist import Listed, Wanted
from planner.search.spare import Spare, impossible, judged_with
from planner.search.steady import Judgement
from planner.search.trials import judged
from planner.search.verdicts import verdict
from planner.sim.spec import Cluster
from policy.latency_source import Extent, extrapolations

BELOW_BOUND = 0.9
"""Where an estimate is no less than a bound, a search begins at so much of it."""
MAX_WIDENINGS = 3
"""To either side of a goodput: by 5, 10 and 20 % at the usual precision."""
MAX_TPOT_S = 1.0
"""Where answers do not end, a batch is as full as it can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is decided, alike for all candidates."""

    setting: Setting
    wanted: Wanted
    spare: Spare


def decided(task: Task, listed: Listed) -> Ranked:
    """For the rate that is wanted, or at the candidate's goodput."""
    if task.wanted.rate_per_s is None:
        return _at_goodput(task, listed)
    found = sized(_free(listed.candidate), partial(_attempt, task, listed.candidate))
    assert found is not None, "candidates without room are not listed"
    return _at_rate(task, _counted(listed.candidate, found.counts), found)


def _free(candidate: Candidate) -> Counts:
    """Counts that may differ from one another: of tied pools there is one."""
    counts = tuple(pool.num for pool in candidate.pools)
    return counts[:1] if candidate.num_segments else counts


def _counted(candidate: Candidate, counts: Counts) -> Candidate:
    return times_as_many(candidate, counts * 2 if candidate.num_segments else counts)


def _attempt(task: Task, base: Candidate, counts: Counts) -> Judgement | None:
    candidate, rate_per_s = _counted(base, counts), task.wanted.rate_per_s
    assert rate_per_s is not None
    if not task.wanted.has_room(task.setting.fleet, candidate):
        return None
    return _judged(task, cluster_of(task.setting.fleet, candidate), rate_per_s)


def _judged(task: Task, cluster: Cluster, rate_per_s: float) -> Judgement:
    """By arithmetic where it is beyond doubt, else by simulation."""
    limit = task.setting.bounds(cluster)
    if rate_per_s > limit.most_per_s:
        is_prefill = limit.prefill_per_s <= limit.most_per_s
        return impossible(task.setting.joint, rate_per_s, "ttft" if is_prefill else "tpot")
    return judged_with(task.setting.joint, cluster, rate_per_s, task.spare)


def _at_rate(task: Task, candidate: Candidate, found: Sized) -> Ranked:
    cluster = cluster_of(task.setting.fleet, candidate)
    first_per_s = found.judgement.rate_per_s
    search = _search(task, cluster, first_per_s)
    goodput = _found(task, cluster, search, known=found.judgement)
    return _ranked(task, candidate, cluster, goodput, found.judgement)


def _at_goodput(task: Task, listed: Listed) -> Ranked:
    cluster = cluster_of(task.setting.fleet, listed.candidate)
    search = _search(task, cluster, listed.estimate_per_s)
    found = _found(task, cluster, search)
    at = found.at_low or min(found.judgements, key=lambda each: each.rate_per_s)
    return _ranked(task, listed.candidate, cluster, found, at)


def _search(task: Task, cluster: Cluster, first_per_s: float) -> Search:
    most_per_s = task.setting.bounds(cluster).most_per_s
    return Search(
        first_rate_per_s=min(first_per_s, BELOW_BOUND * most_per_s),
        most_rate_per_s=most_per_s,
        precision=task.setting.precision,
    )


def _found(
    task: Task, cluster: Cluster, search: Search, *, known: Judgement | None = None
) -> Found:
    def try_rate(rate_per_s: float) -> Judgement:
        if known is not None and known.rate_per_s == rate_per_s and known.num_runs:
            return known
        return judged_with(task.setting.joint, cluster, rate_per_s, task.spare)

    return find(try_rate, search, max_widenings=MAX_WIDENINGS)


def _ranked(
    task: Task, candidate: Candidate, cluster: Cluster, found: Found, judgement: Judgement
) -> Ranked:
    trials = task.setting.joint
    after_loss = None
    if task.spare is not Spare.NONE:
        after_loss = judgement
        judgement = judged(trials, cluster, judgement.rate_per_s)
    seen = verdict(trials, cluster, judgement)
    return Ranked(
        candidate=candidate,
        found=found,
        verdict=seen,
        after_loss=after_loss,
        usd_per_hour=usd_per_hour(cluster),
        notes=tuple(dict.fromkeys(_notes(task, candidate, cluster, seen))),
    )


def _notes(task: Task, candidate: Candidate, cluster: Cluster, seen: Verdict) -> Iterator[str]:
    """What of it lies beyond what the latency models were measured with, in the mean."""
    sample = task.setting.sample
    longest = int(sample.num_prompt_tokens.max())
    gaps, prompts = (sample.num_output_tokens - 1).mean(), sample.num_prompt_tokens.mean()
    writing = seen.rate_per_s * gaps * min(seen.tpot_s.p50, MAX_TPOT_S)
    for pool, kind in zip(candidate.pools, cluster.kinds, strict=True):
        reads, writes = pool.role is not Role.DECODE, pool.role is not Role.PREFILL
        # Stages write answers in as many lanes.
        batch = min(kind.max_batch, int(writing / (pool.num * pool.layout.pp)))
        extent = Extent(
            prompt_tokens=longest if reads else 0,
            step_tokens=max(longest, kind.step_tokens) if reads else 0,
            batch=batch if writes else 0,
            context_tokens=int(batch * (prompts + gaps / 2)) if writes else 0,
        )
        reach = task.setting.fleet[pool.hardware].source.reach(pool.layout)
        for each in extrapolations(reach, extent):
            yield f"{pool.role.value} {pool.layout}: {each}"
