"""Profiles an engine: every step in every round, in an order that lets no step profit from when it
came; an interrupted run goes on where it ended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from random import Random

from core.profile import (
    ALONE,
    LOADED,
    SCHEMA,
    Condition,
    LayoutProfile,
    Profile,
    StepShape,
    Subject,
)
from deploy.profile_journal import Journal, Round, replace_file
from deploy.profile_plan import MIN_ROUNDS, BudgetTooShort, OnProgress, ProfileJob, plan
from deploy.profile_points import GridPoint, grid, weight
from deploy.profile_result import condition_of, saturation_of
from deploy.profile_steps import Bench

Neighbours = Callable[[], AbstractContextManager[None]]
"""Loads the machine until the block ends."""


def profile(
    bench: Bench,
    subject: Subject,
    job: ProfileJob,
    neighbours: Neighbours = nullcontext,
    on_progress: OnProgress = lambda step, done: None,
) -> Profile:
    """Measure, fit and write `job.out`. Raises BudgetTooShort, with what was measured kept."""
    points = grid(bench.room, quick=job.quick)
    journal = Journal.open(job.journal_path, _header(subject, job, points))
    on_progress("touching memory", 0.0)
    bench.touch()
    if journal.planned:
        _warm_up(bench, journal.planned[ALONE])
    else:
        journal.plan(plan(bench, job, points, on_progress))
    for name, number in _missing(job, journal):
        with neighbours() if name == LOADED else nullcontext():
            done = _round(bench, job, journal, (name, number), on_progress)
        if done is None:
            break
        journal.add(done)
    _check_rounds(journal)
    made = _profile(subject, job, journal, points)
    replace_file(job.out, made.to_json())
    journal.path.unlink()
    return made


def _header(subject: Subject, job: ProfileJob, points: Sequence[GridPoint]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "subject": asdict(subject),
        "num_rounds": job.num_rounds,
        "seed": job.seed,
        "grid": [asdict(point) for point in points],
    }


def _warm_up(bench: Bench, shapes: Sequence[StepShape]) -> None:
    """The dearest step of each kind: the allocator then has what the others need."""
    for kind in ("prefill", "decode"):
        bench.step_s(max((s for s in shapes if s.kind == kind), key=weight))


def _missing(job: ProfileJob, journal: Journal) -> Iterator[tuple[str, int]]:
    """Condition and number of the rounds to come; the conditions in turn, so that a slow hour
    slows both."""
    for number in range(job.num_rounds):
        for name in (ALONE, LOADED):
            if number >= len(journal.of(name)):
                yield name, number


def _round(
    bench: Bench, job: ProfileJob, journal: Journal, of: tuple[str, int], on_progress: OnProgress
) -> Round | None:
    """Every step once, in an order of its own; None when the time ended on the way."""
    name, number = of
    shapes = list(journal.planned[name])
    Random(f"{job.seed} {name} {number}").shuffle(shapes)
    text = f"round {number + 1} of {job.num_rounds}, {name}"
    num_rounds, total = len(journal.rounds), sum(map(weight, shapes))
    times_s: dict[StepShape, float] = {}
    done = 0.0
    for shape in shapes:
        if bench.clock.now_s() >= job.deadline_s:
            return None
        on_progress(text, (num_rounds + done / total) / (2 * job.num_rounds))
        times_s[shape] = bench.least_step_s(shape)
        done += weight(shape)
    return Round(name, times_s, {size: bench.copy_s(size) for size in bench.copy_sizes()})


def _check_rounds(journal: Journal) -> None:
    for name in (ALONE, LOADED):
        if (num_rounds := len(journal.of(name))) < MIN_ROUNDS:
            raise BudgetTooShort(
                f"the time ended after {num_rounds} rounds {name}, {MIN_ROUNDS} are needed; they"
                f" are kept in {journal.path}: run it again to go on"
            )


def _profile(
    subject: Subject, job: ProfileJob, journal: Journal, points: Sequence[GridPoint]
) -> Profile:
    held_out = frozenset(point.shape for point in points if point.held_out)

    def condition(name: str) -> Condition:
        return condition_of(name, journal.of(name), held_out, subject.kv_bytes_per_token)

    layout = LayoutProfile(
        tp=1,
        pp=1,
        saturation=saturation_of(journal.of(ALONE)),
        conditions=(condition(ALONE), condition(LOADED)),
    )
    return Profile(
        subject=subject,
        measured_at=job.measured_at,
        command=job.command,
        layouts=(layout,),
    )
