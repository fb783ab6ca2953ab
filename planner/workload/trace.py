"""Files that hold workloads: Azure's, Mooncake's, those of two simulators, and our own."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from core.errors import ConfigError
from planner.workload.router_log import ended_choices, is_log_line

BLOCK_TOKENS = 512
"""Prompt tokens that one of Mooncake's hash ids stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a workload: when it comes and how long it is, not yet what it says."""

    at_s: float
    """From the start of the workload."""
    num_prompt_tokens: int
    num_output_tokens: int
    block_hashes: tuple[int, ...] = ()
    """Of the prompt's blocks of BLOCK_TOKENS tokens; equal ones hold equal tokens. Empty: the
    prompt has nothing in common with any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one kind of file names its columns."""

    name: str
    prompt: str
    output: str
    moment: str = ""
    """Empty: lengths alone."""
    seconds: Callable[[str], float] = float
    """Of what `moment` holds; its zero may be anywhere."""
    error: str = ""
    """Not empty where a request failed. It was offered all the same, with an answer of `asked`
    tokens: a trace without it would be a lighter load."""
    asked: str = ""
    run: str = ""
    """Rows that differ in it are of different runs, each with a clock of its own."""


def _timestamp_s(text: str) -> float:
    # Two of them are only ever subtracted, so that the zone, which the file does not tell, is
    # of no consequence as long as it is always the same.
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def _milliseconds_s(text: str) -> float:
    return float(text) / 1e3


FORMATS = (
    Format(
        name="Azure LLM inference",
        prompt="ContextTokens",
        output="GeneratedTokens",
        moment="TIMESTAMP",
        seconds=_timestamp_s,
    ),
    Format(
        name="Mooncake",
        prompt="input_length",
        output="output_length",
        moment="timestamp",
        seconds=_milliseconds_s,
    ),
    Format(name="plain", prompt="prompt_tokens", output="output_tokens", moment="arrival_s"),
    Format(
        name="baton bench --csv",
        prompt="num_prompt_tokens",
        output="num_output_tokens",
        moment="at_s",
        error="error",
        asked="max_tokens",
        run="rate_per_s",
    ),
    Format(
        name="splitwise-sim",
        prompt="prompt_size",
        output="token_size",
        moment="arrival_timestamp",
    ),
    Format(name="simdistserve", prompt="prompt_len", output="output_len", moment="start_time"),
    Format(name="lengths", prompt="prompt_tokens", output="output_tokens"),
    Format(name="lengths", prompt="prompt_len", output="output_len"),
)

Record = Mapping[str, Any]


def read_trace(path: Path) -> list[TraceRow]:
    """Sorted by arrival, the first at 0 s. Raises ConfigError for what is no trace."""
    form, records = _read(path, timed=True)
    rows = [_row(form, each, f"{path}: record {i}") for i, each in enumerate(records, 1)]
    rows.sort(key=lambda row: row[0])
    begin_s = rows[0][0]
    return [
        TraceRow(
            at_s=at_s - begin_s,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            block_hashes=hashes,
        )
        for at_s, (num_prompt_tokens, num_output_tokens), hashes in rows
    ]


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Pairs of prompt and output tokens, from a trace or from a file of lengths alone."""
    form, records = _read(path, timed=False)
    return [_lengths(form, each, f"{path}: record {i}") for i, each in enumerate(records, 1)]


def has_moments(path: Path) -> bool:
    """Whether it is a trace; else it may be a file of lengths alone. Raises ConfigError."""
    first = _records(path, 1)[0]
    return is_log_line(first) or any(
        form.moment and _needed(form, timed=True) <= first.keys() for form in FORMATS
    )


def _row(
    form: Format, record: Record, where: str
) -> tuple[float, tuple[int, int], tuple[int, ...]]:
    lengths = _lengths(form, record, where)
    try:
        at_s = form.seconds(str(record[form.moment]))
        if not isfinite(at_s):
            raise ValueError(f"{at_s} s")
        hashes = tuple(map(int, record.get("hash_ids") or ()))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            (f"{where}: {form.moment} and hash ids must be as in {form.name}'s format: {error}",)
        ) from None
    return at_s, lengths, hashes


def _lengths(form: Format, record: Record, where: str) -> tuple[int, int]:
    """At least one token each: no server takes an empty prompt, or answers with nothing."""
    output = form.asked if form.error and record.get(form.error) else form.output
    try:
        return max(1, int(record[form.prompt])), max(1, int(record[output]))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            (f"{where}: {form.prompt} and {output} must be whole numbers: {error}",)
        ) from None


def _read(path: Path, *, timed: bool) -> tuple[Format, Sequence[Record]]:
    """At least one record, and the file's format, which the first one tells."""
    records = _records(path, None)
    if is_log_line(records[0]):
        records = ended_choices(records, str(path))
    form = _format_of(path, records[0], timed=timed)
    if form.run and len(runs := {each.get(form.run) for each in records}) > 1:
        raise ConfigError(
            (f"{path}: holds {len(runs)} runs, a trace is one: keep the rows of one {form.run}",)
        )
    return form, records


def _records(path: Path, most: int | None) -> Sequence[Record]:
    """At least one; the first so many (None: all)."""
    try:
        with _opened(path) as file:
            lines = _json(file) if _is_json(path) else csv.DictReader(file)
            records = list(islice(lines, most))
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise ConfigError((f"{path}: cannot be read as a trace: {error}",)) from None
    if not records:
        raise ConfigError((f"{path}: holds no request",))
    return records


def _format_of(path: Path, record: Record, *, timed: bool) -> Format:
    for form in FORMATS:
        if _needed(form, timed=timed) <= record.keys() and (form.moment or not timed):
            return form
    known = "; ".join(
        ", ".join(filter(None, (form.moment, form.prompt, form.output)))
        for form in FORMATS
        if form.moment or not timed
    )
    raise ConfigError(
        (f"{path}: has the columns {', '.join(map(str, record))}; known are: {known}",)
    )


def _needed(form: Format, *, timed: bool) -> set[str]:
    return {form.prompt, form.output} | ({form.moment} if timed else set())


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8", newline="")


def _is_json(path: Path) -> bool:
    return Path(path.name.removesuffix(".gz")).suffix in (".jsonl", ".json", ".log")


def _json(file: TextIO) -> Iterator[Record]:
    """One list of all (simdistserve), or an object a line."""
    first = file.readline()
    if first.startswith("[{"):
        yield from map(_checked, json.loads(first + file.read()))
        return
    for line in (first, *file):
        if line.strip():
            yield _checked(json.loads(line))


def _checked(record: object) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"there is no JSON object but {str(record)[:40]!r}")
    return record
