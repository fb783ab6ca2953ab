"""Several classes of requests at a fixed mix, each with its own limits, from TOML."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.config import build
from core.errors import ConfigError
from core.slo import Slo
from planner.ask.gathered import Gathered
from planner.workload.arrivals import Arrivals
from planner.workload.classes import RequestClass
from planner.workload.distributions import parse_lengths
from planner.workload.lengths import Independent, Lengths, resampled
from planner.workload.presets import load_lengths
from planner.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """In seconds; 0: none."""

    ttft: float = 0.0
    tpot: float = 0.0
    e2e: float = 0.0

    @property
    def slo(self) -> Slo:
        """As the core has it."""
        return Slo(ttft_s=self.ttft or None, tpot_s=self.tpot or None, e2e_s=self.e2e or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEntry:
    """One table [[classes]] of the file."""

    name: str
    share: float
    """Of all requests."""
    workload: str = ""
    """Lengths of a preset or file; or the two that follow."""
    prompt_tokens: str = ""
    output_tokens: str = ""
    slo: Limits = field(default_factory=Limits)
    target: float = 0.9
    cached: float = 0.0
    """Share of each prompt that every instance is taken to hold."""


def load_mix(path: Path, arrivals: Arrivals) -> Workload:
    """Raises ConfigError with every problem."""
    gathered = Gathered()
    entries = _entries(path)
    classes = [gathered.of(partial(_class_of, entry)) for entry in entries]
    gathered.check()
    return Workload(
        name=path.name, arrivals=arrivals, classes=tuple(each for each in classes if each)
    )


def _entries(path: Path) -> Iterator[ClassEntry]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError((f"{path}: {error}",)) from None
    tables = document.get("classes")
    is_known = document.keys() == {"classes"} and isinstance(tables, list)
    if not is_known or not tables or not all(isinstance(each, dict) for each in tables):
        raise ConfigError((f"{path}: must hold tables [[classes]] and nothing else",))
    return iter(_built(path, tables))


def _built(path: Path, tables: list[dict[str, Any]]) -> list[ClassEntry]:
    problems: list[str] = []
    found = [
        build(ClassEntry, table, f"{path}: class {number}", problems)
        for number, table in enumerate(tables, 1)
    ]
    if problems:
        raise ConfigError(tuple(problems))
    return [each for each in found if each is not None]


def _class_of(entry: ClassEntry) -> RequestClass:
    slo = entry.slo.slo
    if slo == Slo():
        raise ConfigError((f"class {entry.name}: slo must limit ttft, tpot or e2e",))
    return RequestClass(
        name=entry.name,
        share=entry.share,
        lengths=_lengths_of(entry),
        slo=slo,
        target=entry.target,
        cached_share=entry.cached,
    )


def _lengths_of(entry: ClassEntry) -> Lengths:
    given = [bool(entry.workload), bool(entry.prompt_tokens), bool(entry.output_tokens)]
    if given == [True, False, False]:
        return resampled(load_lengths(entry.workload))
    if given == [False, True, True]:
        return Independent(
            prompt=parse_lengths(f"class {entry.name}: prompt_tokens", entry.prompt_tokens),
            output=parse_lengths(f"class {entry.name}: output_tokens", entry.output_tokens),
        )
    raise ConfigError((f"class {entry.name}: needs workload, or prompt_tokens and output_tokens",))
