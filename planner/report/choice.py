"""Which of the clusters that were found the plan is made of."""

from planner.search.question import Answer, Question
from planner.search.results import Ranked, ranking


def chosen(answer: Answer, question: Question) -> Ranked | None:
    """The best by the question's goal, of two pools or of one; None where none attains."""
    rivals = [each for each in (answer.best, answer.colocated) if each is not None]
    able = [each for each in rivals if each.attains]
    ranked = ranking(able, question.goal, has_rate=question.rate_per_s is not None)
    return next(iter(ranked), None)


def chosen_text(winner: Ranked, answer: Answer, question: Question) -> str:
    """The answer in a sentence or two."""
    num_gpus = winner.candidate.num_gpus
    found = (
        f"plan: {winner.candidate} ({num_gpus} GPU{'s' if num_gpus > 1 else ''}), "
        f"{winner.found.low_per_s:.4g} requests/s"
    )
    if winner.candidate.is_colocated:
        return f"{found}\ncolocated wins with the same latency model: --explain says why"
    if answer.colocated_wins:
        return f"{found}\nper GPU colocated attains more; by {question.goal.value} two pools win"
    return found
