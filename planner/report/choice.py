"""Which of the clusters that were found the plan is made of."""

from planner.search.question import Answer, Question
from planner.search.results import Ranked, ranking


def chosen(answer: Answer, question: Question) -> Ranked | None:
    """The best by the question's goal, of two pools or of one; None where none attains."""
    rivals = [each for each in (answer.best, answer.colocated) if each is not None]
    able = [each for each in rivals if each.attains]
    ranked = ranking(able, question.goal, has_rate=question.rate_per_s is not None)
    return next(iter(ranked), None)


def layout_text(ranked: Ranked) -> str:
    """3 × prefill 2x1 + 2 × decode 1x1."""
    return str(ranked.candidate)
