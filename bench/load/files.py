"""Results for programs: one JSON document, and CSV with a row per request."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.load.measures import LATENCIES
from bench.load.outcome import Outcome
from bench.load.run import LoadRun
from bench.load.session import LoadResult
from bench.report import commit, machine

COLUMNS = (
    *("rate_per_s", "at_s", "counted", "late_s", "error", "num_prompt_tokens", "max_tokens"),
    *("num_output_tokens", *(f"{name}_s" for name in LATENCIES), "longest_pause_s", "ended_at_s"),
)


def write_json(result: LoadResult, path: Path) -> None:
    """Everything but the single requests; times in seconds."""
    document = {
        "name": "load",
        "machine": machine(),
        "commit": commit(),
        "options": _options(result),
        "runs": [
            {"rate_per_s": run.workload.rate_per_s, **asdict(run.measures)} for run in result.runs
        ],
        "goodput": _goodput(result),
    }
    text = json.dumps(_plain(document), indent=2, default=str, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _options(result: LoadResult) -> dict[str, Any]:
    """Of headers the names alone: a value may be a key."""
    options = asdict(result.options)
    options["endpoint"]["headers"] = sorted(result.options.endpoint.headers)
    return options


def _goodput(result: LoadResult) -> dict[str, Any] | None:
    found = result.goodput
    if found is None:
        return None
    num_gpus = result.options.num_gpus
    return {
        "target": found.target,
        "low_per_s": found.low_per_s,
        "high_per_s": found.high_per_s,
        "goodput_rps_per_gpu": None if num_gpus is None else found.low_per_s / num_gpus,
        "points": [
            asdict(point)
            | {
                "attains": point.attains(found.target),
                "is_sure": point.is_sure(found.target),
            }
            for point in found.points
        ],
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - any tree of JSON
    """JSON has no infinity: null, as for what is not known."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(result: LoadResult, path: Path) -> None:
    """All requests, warm-up included; empty where there is no such value."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for run in result.runs:
            writer.writerows(_rows(run))


def _rows(run: LoadRun) -> Iterator[tuple[Any, ...]]:
    window = run.measures.window
    for o in run.outcomes:
        yield (
            *(run.workload.rate_per_s, o.at_s, int(window.holds(o.at_s)), o.late_s, o.error),
            *(o.num_prompt_tokens, o.max_tokens, o.answer.num_output_tokens),
            *_latencies(o),
            *(max(o.answer.pauses_s(), default=None), o.ended_at_s),
        )


def _latencies(outcome: Outcome) -> Iterator[float | None]:
    """Of whole answers."""
    moments = outcome.answered
    for latency in LATENCIES.values():
        yield None if moments is None else latency(moments)
