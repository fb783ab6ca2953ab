"""profile.json.partial: what an unfinished profile has measured, so that the next run goes on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.json_tree import tree
from core.profile import StepShape


@dataclass(frozen=True, slots=True)
class Round:
    """One condition measured once."""

    condition: str
    times_s: Mapping[StepShape, float]
    copies_s: Mapping[int, tuple[float, float]]
    """Tokens → gather and scatter."""


@dataclass(slots=True)
class Journal:
    """JSON lines: a header that says of what, the plan, then one line per finished round."""

    path: Path
    header: Mapping[str, Any]
    """Another header's journal is begun anew: its figures are of something else."""
    planned: Mapping[str, Sequence[StepShape]] = field(default_factory=dict)
    """Condition → what is measured in each round; empty before it is planned."""
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any]) -> "Journal":
        """What there is under the same header, or a new one."""
        journal = cls(path, header)
        lines = list(_lines(path))
        first = json.loads(json.dumps({"header": header}))
        if not lines or lines[0] != first:
            lines = [first]
        for line in lines[1:]:
            journal._read(line)
        # Written anew without what a crash left of its last line: the next one follows it.
        replace_file(path, "".join(json.dumps(line) + "\n" for line in lines))
        return journal

    def plan(self, planned: Mapping[str, Sequence[StepShape]]) -> None:
        """Keep the plan: every later run keeps to it."""
        self.planned = planned
        shapes = {name: [asdict(shape) for shape in shapes] for name, shapes in planned.items()}
        self._append({"plan": shapes})

    def add(self, done: Round) -> None:
        """Keep a round."""
        self.rounds.append(done)
        times = [[asdict(shape), seconds] for shape, seconds in done.times_s.items()]
        copies = [[num_tokens, *pair] for num_tokens, pair in done.copies_s.items()]
        self._append({"round": {"condition": done.condition, "times": times, "copies": copies}})

    def of(self, condition: str) -> list[Round]:
        """The finished rounds of a condition."""
        return [done for done in self.rounds if done.condition == condition]

    def _read(self, line: Mapping[str, Any]) -> None:
        if "plan" in line:
            self.planned = {
                name: [_shape(shape) for shape in shapes] for name, shapes in line["plan"].items()
            }
        elif "round" in line:
            told = line["round"]
            self.rounds.append(
                Round(
                    told["condition"],
                    {_shape(shape): seconds for shape, seconds in told["times"]},
                    {
                        num_tokens: (gather, scatter)
                        for num_tokens, gather, scatter in told["copies"]
                    },
                )
            )

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _shape(table: object) -> StepShape:
    problems: list[str] = []
    shape = tree(StepShape, table, "shape", problems)
    if not isinstance(shape, StepShape):
        raise ValueError("; ".join(problems))
    return shape


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Up to the first that a crash left unfinished."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            return
        yield told
