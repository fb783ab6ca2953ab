"""What a workload is made of, and the files that hold one: Azure's, Mooncake's and our own."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from core.errors import ConfigError

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
    Format(name="lengths", prompt="prompt_tokens", output="output_tokens"),
    Format(name="lengths", prompt="prompt_len", output="output_len"),
)

Record = Mapping[str, Any]


def read_trace(path: Path) -> list[TraceRow]:
    """Sorted by arrival, the first at 0 s. Raises ConfigError for what is no trace."""
    rows = []
    for form, number, record in _records(path, timed=True):
        rows.append(_row(form, record, f"{path}: record {number}"))
    rows.sort(key=lambda row: row.at_s)
    return [replace(row, at_s=row.at_s - rows[0].at_s) for row in rows]


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Pairs of prompt and output tokens, from a trace or from a file of lengths alone."""
    return [
        _lengths(form, record, f"{path}: record {number}")
        for form, number, record in _records(path, timed=False)
    ]


def _row(form: Format, record: Record, where: str) -> TraceRow:
    num_prompt_tokens, num_output_tokens = _lengths(form, record, where)
    try:
        at_s = form.seconds(str(record[form.moment]))
        hashes = tuple(int(each) for each in record.get("hash_ids") or ())
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            (f"{where}: {form.moment} and hash ids must be as in {form.name}'s format: {error}",)
        ) from None
    return TraceRow(
        at_s=at_s,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        block_hashes=hashes,
    )


def _lengths(form: Format, record: Record, where: str) -> tuple[int, int]:
    """At least one token each: no server takes an empty prompt, or answers with nothing."""
    try:
        return max(1, int(record[form.prompt])), max(1, int(record[form.output]))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            (f"{where}: {form.prompt} and {form.output} must be whole numbers: {error}",)
        ) from None


def _records(path: Path, *, timed: bool) -> Iterator[tuple[Format, int, Record]]:
    """Each with the file's format, which its first record tells, and its number from 1."""
    try:
        with _opened(path) as file:
            records = list(_json_lines(file) if _is_json(path) else csv.DictReader(file))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError((f"{path}: cannot be read as a trace: {error}",)) from None
    if not records:
        raise ConfigError((f"{path}: holds no request",))
    form = _format_of(path, records[0], timed=timed)
    for number, record in enumerate(records, 1):
        yield form, number, record


def _format_of(path: Path, record: Record, *, timed: bool) -> Format:
    for form in FORMATS:
        needed = {form.prompt, form.output} | ({form.moment} if timed else set())
        if needed <= record.keys():
            return form
    known = "; ".join(
        ", ".join(filter(None, (form.moment, form.prompt, form.output)))
        for form in FORMATS
        if form.moment or not timed
    )
    raise ConfigError((f"{path}: has the columns {', '.join(record)}; known are: {known}",))


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8", newline="")


def _is_json(path: Path) -> bool:
    return Path(path.name.removesuffix(".gz")).suffix in (".jsonl", ".json")


def _json_lines(file: TextIO) -> Iterator[Record]:
    for line in file:
        if line.strip():
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a line holds no JSON object but {line[:40]!r}")
            yield record
