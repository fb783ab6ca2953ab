"""Many candidates at once, on all cores: the simulator lets go of the interpreter while it runs.

Answers come in the order of what was asked, whoever is ready first, so that nothing depends on how
many threads there are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Progress = Callable[[str], None]
"""Takes a line for people."""


def silent(_: str) -> None:
    """No progress is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who works on it."""

    num_threads: int = 1
    on_progress: Progress = silent

    def each(
        self,
        what: str,
        work: Callable[[Asked], Answered],
        asked: Sequence[Asked],
        *,
        done: int = 0,
        total: int | None = None,
    ) -> list[Answered]:
        """`work` of each, in order; progress is told from the caller's own thread, as a part of a
        `total` of which some were `done` before.

        Raises what the first of them in order raised; the others are ended first.
        """
        total = len(asked) if total is None else total
        if self.num_threads == 1 or len(asked) <= 1:
            answers = []
            for number, one in enumerate(asked, done + 1):
                answers.append(work(one))
                self.on_progress(f"{what}: {number} of {total}")
            return answers
        with ThreadPoolExecutor(self.num_threads) as executor:
            futures = [executor.submit(work, one) for one in asked]
            for number, _ in enumerate(as_completed(futures), done + 1):
                self.on_progress(f"{what}: {number} of {total}")
            return [future.result() for future in futures]
