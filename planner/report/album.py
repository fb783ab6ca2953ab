"""Draws and saves the pictures of an answer."""

from collections.abc import Iterator
from pathlib import Path

from planner.report.pictures import figures
from planner.search.fleet import cluster_of
from planner.search.question import Answer, Question
from planner.search.results import Ranked
from planner.sim.outcome import Outcome

NUM_REQUESTS = 10_000
"""Of the run that tells how tight limits may be."""
FORMATS = ("svg", "png")
PNG_DPI = 120


def save_pictures(
    folder: Path, question: Question, answer: Answer, winner: Ranked | None
) -> tuple[Path, ...]:
    """Each as SVG and as PNG; none where no cluster was simulated. Raises OSError."""
    rivals = list(_rivals(answer, winner))
    if not rivals:
        return ()
    folder.mkdir(exist_ok=True)
    classes = tuple(question.workload.classes)
    every = [*answer.ranked, *([] if answer.colocated is None else [answer.colocated])]
    outcomes = [(label, _outcome(question, ranked)) for label, ranked in rivals]
    promise = tuple(each.slo for each in classes), classes[0].target
    paths = []
    for name, figure in figures(rivals, outcomes, every, promise):
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(path, dpi=PNG_DPI, metadata=metadata)
            paths.append(path)
    return tuple(paths)


def _rivals(answer: Answer, winner: Ranked | None) -> Iterator[tuple[str, Ranked]]:
    """The plan first, then the best of the other architecture."""
    first = winner or next(iter(answer.ranked), answer.colocated)
    if first is None:
        return
    yield "plan" if winner is not None else "nearest", first
    others = answer.ranked if first.candidate.is_colocated else [answer.colocated]
    other = next((each for each in others if each is not None and each is not first), None)
    if other is not None:
        yield "colocated" if other.candidate.is_colocated else "two pools", other


def _outcome(question: Question, ranked: Ranked) -> Outcome:
    requests = question.workload.traffic(
        ranked.verdict.rate_per_s, NUM_REQUESTS, question.sampling.seed
    )
    return question.simulate(cluster_of(question.fleet, ranked.candidate), requests)
