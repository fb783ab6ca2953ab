"""The whole search, from a question to its answer: screen layouts, list clusters, simulate them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from core.errors import ConfigError
from core.member import Role
from planner.search.candidates import Limits, mixed_pools, pools, units
from planner.search.decide import Task, decided
from planner.search.explain import reasons
from planner.search.fleet import Fleet
from planner.search.parallel import Progress, Workers, silent
from planner.search.question import Affinity, Answer, Question
from planner.search.results import ranking
from planner.search.screen import Screened, Screening, screen
from planner.search.setting import Setting, setting
from planner.search.shortlist import (
    Listed,
    Wanted,
    algorithm_1,
    of_mixed,
    of_pairs,
    of_units,
    shortlist,
)
from planner.search.trials import Counted
from planner.search.unloaded import Reach


def plan(question: Question, on_progress: Progress = silent) -> Answer:
    """Raises ConfigError with every problem of the question."""
    if problems := tuple(question.problems()):
        raise ConfigError(problems)
    simulate = Counted(question.simulate)
    shared = setting_of(replace(question, simulate=simulate))
    workers = Workers(num_threads=question.num_threads, on_progress=on_progress)
    screens = _screens(question, shared, workers)
    wanted = Wanted(goal=question.goal, rate_per_s=question.rate_per_s, budget=question.budget)
    task = partial(decided, Task(setting=shared, wanted=wanted, spare=question.spare))
    disaggregated = workers.each(
        "clusters with two pools", task, _disaggregated(question, shared, screens, wanted)
    )
    mixed = workers.each("clusters with one pool", task, _mixed(question, shared, screens, wanted))
    has_rate = question.rate_per_s is not None
    ranked = ranking(disaggregated, question.goal, has_rate=has_rate)
    colocated = next(iter(ranking(mixed, question.goal, has_rate=has_rate)), None)
    return Answer(
        ranked=ranked,
        colocated=colocated,
        missed=missed([each for screening in screens for each in screening.found]),
        best_rate_per_s=max((each.found.low_per_s for each in (*ranked, *mixed)), default=0.0),
        reasons=tuple(reasons(screens, ranked, colocated, question.rate_per_s)),
        num_runs=simulate.num_runs,
        num_requests=simulate.num_requests,
    )


def setting_of(question: Question) -> Setting:
    """What `plan` works with; `sensitivities` asks for it, too."""
    return setting(
        question.fleet,
        question.workload,
        question.simulate,
        sampling=question.sampling,
        precision=question.precision,
    )


def _screens(question: Question, shared: Setting, workers: Workers) -> list[Screening]:
    """Of prefill, of decode, and of both on one instance."""
    fleet, limits = question.fleet, _limits(question, shared)
    asked = {
        Role.PREFILL: ("prefill layouts", pools(fleet, Role.PREFILL, limits)),
        Role.DECODE: ("decode layouts", pools(fleet, Role.DECODE, limits)),
        Role.MIXED: ("colocated layouts", mixed_pools(fleet, limits)),
    }
    return [screen(shared, role, made, workers, what) for role, (what, made) in asked.items()]


def _limits(question: Question, shared: Setting) -> Limits:
    """An instance has to hold at least as many of the requests as must keep their limits."""
    sample, limits = shared.sample, question.limits
    target = min(each.target for each in shared.classes)
    needed = sample.num_prompt_tokens + sample.num_output_tokens - 1
    tokens = int(np.quantile(needed, target, method="inverted_cdf"))
    return replace(
        limits,
        least_tokens=max(limits.least_tokens, tokens),
        max_gpus=min(limits.max_gpus, question.most_gpus),
    )


def _disaggregated(
    question: Question, shared: Setting, screens: Sequence[Screening], wanted: Wanted
) -> Sequence[Listed]:
    """At the rate; or, where the GPUs do not suffice for it, with all of them."""
    prefill, decode, num = screens[0].found, screens[1].found, question.num_simulated
    always = algorithm_1(prefill, decode)
    for asked in (wanted, replace(wanted, rate_per_s=None)):
        short: list[Listed] = []
        if Affinity.HIGH in question.affinity:
            listed = list(of_pairs(question.fleet, prefill, decode, asked))
            short += shortlist(listed, shared, asked, num=num, always=always)
        if Affinity.LOW in question.affinity and _is_far(question.fleet):
            made = units(question.fleet, question.limits)
            listed = list(of_units(question.fleet, made, prefill, decode, asked))
            short += shortlist(listed, shared, asked, num=max(1, num // 2), always=None)
        if short:
            return short
    return ()


def _is_far(fleet: Fleet) -> bool:
    """Only where KV moves faster within a host than between hosts need phases share one."""
    return fleet.network.host_bytes_per_s < fleet.network.local_bytes_per_s


def _mixed(
    question: Question, shared: Setting, screens: Sequence[Screening], wanted: Wanted
) -> Sequence[Listed]:
    num = max(1, question.num_simulated // 2)
    for asked in (wanted, replace(wanted, rate_per_s=None)):
        listed = list(of_mixed(question.fleet, screens[2].found, asked))
        if short := shortlist(listed, shared, asked, num=num, always=None):
            return short
    return ()


def missed(screened: Sequence[Screened]) -> tuple[Reach, ...]:
    """Limits that no layout keeps, and the nearest that some does, in its target's share."""
    best: dict[tuple[str, str], Reach] = {}
    for each in (reach for one in screened for reach in one.reaches):
        key = (each.class_name, each.limit)
        if key not in best or each.reached_s < best[key].reached_s:
            best[key] = each
    return tuple(each for each in best.values() if not each.is_met)
