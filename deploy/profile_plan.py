"""What a profile measures in the time it has."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import BatonError
from core.profile import ALONE, LOADED, StepShape
from deploy.profile_points import GridPoint, affordable, between_fitted, weight
from deploy.profile_steps import ENOUGH_S, MAX_REPETITIONS, Bench

MIN_ROUNDS = 3
"""Fewer tell nothing of how well they repeat."""
NUM_ROUNDS = 5
LOADED_COST = 1.25
"""A step on the loaded machine against one alone; measured 1.05 with one of two cores busy."""
PLANNED_SHARE = 0.85
"""Of the budget; the rest is for what the plan did not foresee."""
MIN_FITTED: Mapping[str, int] = {"prefill": 3, "decode": 2}
"""As many steps as the model has coefficients, at least."""

OnProgress = Callable[[str, float], None]
"""What is being done, and how much of all is done (0-1)."""


class BudgetTooShort(BatonError):
    """The time given ended before enough was measured; finished rounds are kept."""

    status = "DEADLINE_EXCEEDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileJob:
    """What is wanted of a profile."""

    out: Path
    deadline_s: float
    """When measuring ends, on the bench's clock."""
    quick: bool
    measured_at: str
    command: str
    seed: int = 0

    @property
    def num_rounds(self) -> int:
        """How often everything is measured."""
        return MIN_ROUNDS if self.quick else NUM_ROUNDS

    @property
    def journal_path(self) -> Path:
        """Where an unfinished run is kept."""
        return self.out.with_name(self.out.name + ".partial")


def plan(
    bench: Bench, job: ProfileJob, points: Sequence[GridPoint], on_progress: OnProgress
) -> Mapping[str, Sequence[StepShape]]:
    """Condition → steps of each round. One step of every point shows which fit the budget.

    What the reduced grid lacks is dropped first, the dearest first; then the dearest of the
    reduced grid. Raises BudgetTooShort when too little is left to fit a model to.
    """
    left_s = job.deadline_s - bench.clock.now_s()
    per_unit_s = 0.0

    def cost_s(point: GridPoint) -> float:
        nonlocal per_unit_s
        on_progress("trying every step once", 0.0)
        step_s = bench.step_s(point.shape)
        per_unit_s = step_s / weight(point.shape)
        return run_cost_s(job.num_rounds, point, step_s)

    def guess_s(point: GridPoint) -> float:
        # From the point before: the cost per token falls with the size, if anything.
        return run_cost_s(job.num_rounds, point, per_unit_s * weight(point.shape))

    kept = between_fitted(affordable(points, cost_s, guess_s, PLANNED_SHARE * left_s))
    reduced = between_fitted([point for point in kept if point.reduced])
    for some in (kept, reduced):
        _check_enough(some, left_s)
    return {ALONE: [p.shape for p in kept], LOADED: [p.shape for p in reduced]}


def run_cost_s(num_rounds: int, point: GridPoint, step_s: float) -> float:
    """What a point takes of the whole run, of which one step takes `step_s`."""
    repetitions = min(MAX_REPETITIONS, math.ceil(ENOUGH_S / step_s)) if step_s else 1
    per_round = 1.0 + (LOADED_COST if point.reduced else 0.0)
    return step_s * (1 + num_rounds * repetitions * per_round)


def _check_enough(points: Sequence[GridPoint], left_s: float) -> None:
    for kind, least in MIN_FITTED.items():
        of_kind = [point for point in points if point.shape.kind == kind]
        num_held_out = sum(point.held_out for point in of_kind)
        num_fitted = len(of_kind) - num_held_out
        if num_fitted < least or not num_held_out:
            raise BudgetTooShort(
                f"{left_s:.0f} s are enough for {num_fitted} {kind} steps to fit to and"
                f" {num_held_out} to judge by, {least} and 1 are needed: give a longer --budget-s"
            )
