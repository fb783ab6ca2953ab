"""What a run looks like over time and as distributions; figures as SVG text, nothing global."""

from collections.abc import Callable, Iterator, Sequence
from io import StringIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.load.backlog import in_flight
from bench.load.goodput import Goodput
from bench.load.measures import LATENCIES, Window
from bench.load.outcome import Outcome
from bench.load.run import LoadRun
from core.slo import Slo, ttft_s

WIDTH_IN = 9.0
BLUE, ORANGE, RED, GREEN, GREY = "#2563eb", "#d97706", "#dc2626", "#15803d", "#6b7280"
MAX_STEPS = 1000
"""Points of a curve: more than a screen shows, and what keeps the file small."""
NUM_BINS = 60
"""Of a time axis."""
CURVES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}

Series = Sequence[float]


def figures(run: LoadRun, limits: Slo | None, goodput: Goodput | None) -> Iterator[tuple[str, str]]:
    """Title and SVG of each."""
    answered = [o for o in run.outcomes if not o.error]
    counted = [o for o in answered if run.measures.window.holds(o.at_s)]
    if goodput is not None:
        yield "Attainment over rate", _svg(attainment_figure(goodput))
    if counted:
        yield "How latencies are distributed", _svg(cdf_figure(counted, limits))
        yield "Time to first token over time", _svg(timeline_figure(run, limits))
    if answered:
        yield "Throughput and requests in flight over time", _svg(throughput_figure(run))


def cdf_figure(counted: Sequence[Outcome], limits: Slo | None) -> Figure:
    """Share of whole answers at or below each latency."""
    figure, axes = _figure(1, len(CURVES), height_in=3.2)
    moments = [m for o in counted if (m := o.answered) is not None]
    for ax, (name, title) in zip(axes, CURVES.items(), strict=True):
        values = [v for m in moments if (v := LATENCIES[name](m)) is not None]
        limit_s = getattr(limits, f"{name}_s", None)
        _cdf(ax, values)
        if limit_s is not None:
            _limit(ax.axvline, limit_s, "")
            ax.set_title(f"limit {limit_s:g} s", color=RED, fontsize="medium")
        most_s = max((*values, limit_s or 0.0), default=0.0)
        ax.set(xlabel=f"{title} (s)", ylim=(0, 1.02), xlim=(0, 1.05 * most_s or None))
    axes[0].set_ylabel("share of answers")
    return figure


def _cdf(ax: Axes, values: Series) -> None:
    shares = np.linspace(0, 1, min(MAX_STEPS, len(values) + 1))
    if values:
        quantiles = np.quantile(values, shares, method="inverted_cdf")
        ax.step(quantiles, shares, where="post", color=BLUE)


def timeline_figure(run: LoadRun, limits: Slo | None) -> Figure:
    """Each request's TTFT at its due moment; failed ones on the axis."""
    figure, (ax,) = _figure(1, 1, height_in=3.2)
    due = [(o.at_s, ttft_s(m)) for o in run.outcomes if (m := o.answered) is not None]
    failed = [o.at_s for o in run.outcomes if o.error]
    ax.plot(*zip(*due, strict=True), ".", color=BLUE, ms=4, alpha=0.6, rasterized=len(due) > 2000)
    if failed:
        ax.plot(
            failed,
            [0] * len(failed),
            "x",
            color=RED,
            clip_on=False,
            label=f"failed ({len(failed)})",
        )
    if limits is not None and limits.ttft_s is not None:
        _limit(ax.axhline, limits.ttft_s, f"limit {limits.ttft_s:g} s")
    _warmup(ax, run.measures.window)
    ax.set(xlabel="due, since the start (s)", ylabel="TTFT (s)", ylim=(0, None), xlim=(0, None))
    _legend(ax)
    return figure


def throughput_figure(run: LoadRun) -> Figure:
    """Output tokens per second, and requests that have arrived and not ended."""
    figure, (top, bottom) = _figure(2, 1, height_in=4.6, sharex=True)
    end_s = max(o.ended_at_s for o in run.outcomes)
    edges = np.linspace(0, end_s or 1.0, NUM_BINS + 1)
    times_s = np.concatenate([o.answer.times_s for o in run.outcomes])
    sizes = np.concatenate([o.answer.sizes for o in run.outcomes])
    tokens, _ = np.histogram(times_s, bins=edges, weights=sizes)
    top.stairs(tokens / np.diff(edges), edges, fill=True, color=BLUE, alpha=0.75)
    bottom.step(edges, in_flight(run.outcomes, edges.tolist()), where="post", color=ORANGE)
    for ax, label in ((top, "output tokens per s"), (bottom, "requests in flight")):
        _warmup(ax, run.measures.window)
        ax.axvline(run.workload.duration_s, color=GREY, ls=":", lw=1, label="last arrival")
        ax.set(ylabel=label, ylim=(0, None), xlim=(0, end_s or None))
    bottom.set_xlabel("since the start (s)")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(top)
    return figure


def attainment_figure(goodput: Goodput) -> Figure:
    """Each rate tried, with the interval of 95 % confidence."""
    figure, (ax,) = _figure(1, 1, height_in=3.4)
    points = sorted(goodput.points, key=lambda p: p.rate_per_s)
    ax.plot(
        [p.rate_per_s for p in points],
        [p.attainment.value for p in points],
        color=GREY,
        lw=1,
        zorder=1,
    )
    for color, label, attains in ((GREEN, "attains", True), (RED, "does not", False)):
        some = [p for p in points if p.attains(goodput.target) == attains]
        values = [p.attainment.value for p in some]
        ax.errorbar(
            [p.rate_per_s for p in some],
            values,
            yerr=[
                [max(0.0, v - p.attainment.low) for p, v in zip(some, values, strict=True)],
                [max(0.0, p.attainment.high - v) for p, v in zip(some, values, strict=True)],
            ],
            fmt="o",
            color=color,
            capsize=3,
            label=label,
        )
    _limit(ax.axhline, goodput.target, f"target {goodput.target:.0%}")
    if goodput.low_per_s and np.isfinite(goodput.high_per_s):
        span = (goodput.low_per_s, goodput.high_per_s)
        ax.axvspan(*span, color=GREEN, alpha=0.12, lw=0, label="goodput lies here")
    ax.set(xlabel="arrivals (requests/s)", ylabel="attainment", ylim=(0, 1.03), xlim=(0, None))
    _legend(ax)
    return figure


def _figure(
    num_rows: int, num_columns: int, *, height_in: float, sharex: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=sharex).flatten()
    for ax in axes:
        ax.grid(visible=True, color="#e5e7eb", lw=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _limit(line: Callable[..., object], at: float, label: str) -> None:
    line(at, color=RED, ls="--", lw=1.2, label=label)


def _warmup(ax: Axes, window: Window) -> None:
    if window.from_s > 0:
        ax.axvspan(0, window.from_s, color=GREY, alpha=0.15, lw=0, label="warm-up, not counted")


def _legend(ax: Axes) -> None:
    """Beside the axes: points may be anywhere in them."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _svg(figure: Figure) -> str:
    """From its <svg> on: a document inside another has no prologue."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
