"""Results for people, in a terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from bench.load.goodput import Goodput, Point
from bench.load.measures import Measures
from bench.load.session import LoadResult
from bench.load.spread import Spread
from planner.search.intervals import Share

QUANTILES = ("mean", "p50", "p90", "p95", "p99", "max")
NAMES = {
    "ttft": "TTFT",
    "first_gap": "first gap",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
    "late": "sent late",
}


def show(result: LoadResult, console: Console) -> None:
    """The run, its latencies, what failed, what to know; and the search, if there was one."""
    measures = result.shown.measures
    console.print(_summary_table(result))
    console.print(_latency_table(measures))
    for failures in measures.failures:
        console.print(f"{failures.count} × {failures.reason}: {failures.example}", markup=False)
    if result.goodput is not None:
        console.print(_points_table(result.goodput))
        console.print(verdict(result.goodput, result.options.num_gpus), markup=False)
    for note in measures.notes:
        console.print(f"note: {note}", markup=False, style="yellow")


def summary(result: LoadResult) -> Iterator[tuple[str, str]]:
    """What to say of the run besides its latencies: name and value."""
    run, m = result.shown, result.shown.measures
    t = m.throughput
    yield "endpoint", result.options.endpoint.name
    yield "rate asked for", f"{run.workload.rate_per_s:.4g} requests/s"
    yield "window", f"{m.window.from_s:.4g} to {m.window.to_s:.4g} s"
    yield "arrived in it", f"{m.num_arrived} requests, {t.arrived_per_s:.4g}/s"
    yield "of them answered", f"{m.num_answered}"
    yield "failed", f"{m.num_arrived - m.num_answered}"
    if m.attainment is not None:
        yield f"attainment of {result.options.slo}", share_text(m.attainment)
    yield "answers", f"{t.answered_per_s:.4g}/s"
    yield "output tokens", f"{t.output_tokens_per_s:.4g}/s"
    yield "prompt tokens", f"{t.prompt_tokens_per_s:.4g}/s"
    growing = ": grows" if m.trend.grows else ""
    yield "in flight, first and last third", f"{m.trend.first:.1f}, {m.trend.last:.1f}{growing}"
    yield "load generator", f"{m.cpu.cpu_s:.2f} s of CPU, {m.cpu.share:.0%} of a core"


def latency_rows(measures: Measures) -> Iterator[tuple[str, Spread]]:
    """Name and spread of all that there are, lateness last."""
    for name, each in (*measures.latencies_s.items(), ("late", measures.late_s)):
        if each is not None:
            yield NAMES[name], each


def milliseconds(spread: Spread) -> tuple[str, ...]:
    """In the order of QUANTILES, then how many values there are."""
    times_s = (getattr(spread, name) for name in QUANTILES)
    return (*(f"{1e3 * time_s:.1f}" for time_s in times_s), str(spread.num_values))


def share_text(share: Share) -> str:
    """With its interval."""
    return f"{share.value:.1%} (95 %: {share.low:.1%} to {share.high:.1%})"


def verdict(goodput: Goodput, num_gpus: int | None) -> str:
    """One sentence."""
    low, high, target = goodput.low_per_s, goodput.high_per_s, f"{goodput.target:.0%}"
    if not low:
        return (
            f"goodput: below {high:.4g} requests/s, the lowest rate tried, none attained {target}"
        )
    per_gpu = "" if num_gpus is None else f" ({low / num_gpus:.4g} per GPU)"
    if high == float("inf"):
        return (
            f"goodput: at least {low:.4g} requests/s{per_gpu}: every rate tried attained {target}"
        )
    return f"goodput: {low:.4g} requests/s{per_gpu} attained {target}, {high:.4g} did not"


def point_cells(point: Point, target: float) -> tuple[str, ...]:
    """Rate, attainment, its interval, the backlog, the verdict."""
    a = point.attainment
    return (
        f"{point.rate_per_s:.4g}",
        f"{a.value:.1%}",
        f"{a.low:.1%} to {a.high:.1%}",
        str(a.num_all),
        "steady" if point.is_steady else "grows",
        ("yes" if point.attains(target) else "no") + ("" if point.is_sure(target) else ", unsure"),
    )


POINT_COLUMNS = ("requests/s", "attainment", "95 %", "n", "backlog", "attains")


def _summary_table(result: LoadResult) -> Table:
    table = Table(title="baton bench", show_header=False)
    for name, value in summary(result):
        table.add_row(name, value)
    return table


def _latency_table(measures: Measures) -> Table:
    table = Table("ms", title="latencies, from the moment each request was due")
    for column in (*QUANTILES, "n"):
        table.add_column(column, justify="right")
    for name, each in latency_rows(measures):
        table.add_row(name, *milliseconds(each))
    return table


def _points_table(goodput: Goodput) -> Table:
    table = Table(title=f"rates tried: attainment of {goodput.target:.0%} or more?")
    for column in POINT_COLUMNS:
        table.add_column(column, justify="right")
    for point in sorted(goodput.points, key=lambda p: p.rate_per_s):
        table.add_row(*point_cells(point, goodput.target))
    return table
