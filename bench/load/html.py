"""Results as one HTML file that needs no other: tables, and plots as inline SVG."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from bench.load.parsing import parse_slo
from bench.load.plots import figures
from bench.load.session import LoadResult
from bench.load.show import (
    POINT_COLUMNS,
    QUANTILES,
    latency_rows,
    milliseconds,
    point_cells,
    summary,
    verdict,
)
from bench.report import commit, machine

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #e5e7eb; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; }
svg { max-width: 100%; height: auto; }
.verdict { font-size: 1.1rem; font-weight: 600; }
.note { background: #fef3c7; padding: .4rem .8rem; border-left: 4px solid #d97706; }
footer { color: #6b7280; margin-top: 3rem; font-size: .85rem; }
"""


def write_html(result: LoadResult, path: Path) -> None:
    """Overwrites."""
    path.write_text("\n".join(_page(result)) + "\n", encoding="utf-8")


def _page(result: LoadResult) -> Iterator[str]:
    title = f"baton bench: {escape(result.options.endpoint.name)}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
    if result.goodput is not None:
        yield f'<p class="verdict">{escape(verdict(result.goodput, result.options.num_gpus))}</p>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in result.shown.measures.notes)
    yield "<h2>Summary</h2>"
    yield from _table((), summary(result), is_text=True)
    yield "<h2>Latencies in ms, from the moment each request was due</h2>"
    rows = ((name, *milliseconds(each)) for name, each in latency_rows(result.shown.measures))
    yield from _table(("", *QUANTILES, "n"), rows)
    yield from _failures(result)
    if result.goodput is not None:
        target = result.goodput.target
        points = sorted(result.goodput.points, key=lambda p: p.rate_per_s)
        yield f"<h2>Rates tried: attainment of {target:.0%} or more?</h2>"
        yield from _table(POINT_COLUMNS, (point_cells(point, target) for point in points))
    for heading, svg in figures(result.shown, parse_slo(result.options.slo), result.goodput):
        yield f"<h2>{escape(heading)}</h2>{svg}"
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    yield f"<footer>measured on: {escape(about)}; commit {escape(commit() or 'unknown')}</footer>"
    yield "</body></html>"


def _failures(result: LoadResult) -> Iterator[str]:
    if failures := result.shown.measures.failures:
        yield "<h2>Failed requests</h2>"
        rows = ((f.reason, str(f.count), f.example) for f in failures)
        yield from _table(("kind", "requests", "the first was told"), rows, is_text=True)


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, is_text: bool = False
) -> Iterator[str]:
    yield "<table>"
    if columns:
        yield f"<tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"
    cell = '<td class="text">' if is_text else "<td>"
    for row in rows:
        yield f"<tr>{''.join(f'{cell}{escape(value)}</td>' for value in row)}</tr>"
    yield "</table>"
