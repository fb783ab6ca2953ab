"""Pictures of an answer: attainment over rate and over the scale of limits, and what is paid."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.slo import Slo
from planner.report.pareto import Point, front
from planner.search.results import Found, Ranked
from planner.search.steady import Judgement, Window
from planner.search.verdicts import scales
from planner.sim.outcome import Outcome
from policy.table import Floats

WIDTH_IN = 9.0
BLUE, ORANGE, RED, GREY = "#2563eb", "#d97706", "#dc2626", "#6b7280"
SCALES = np.geomspace(0.25, 4.0, 97)
"""Times the limits."""

Labelled = Sequence[tuple[str, Ranked]]
"""The plan, and its rival if there is one."""


def rate_figure(rivals: Labelled, target: float) -> Figure:
    """Every rate that was tried, with its interval of 95 % confidence."""
    figure, (ax,) = _figure(1)
    for color, (label, ranked) in zip((BLUE, ORANGE), rivals, strict=False):
        _curve(ax, ranked.found, f"{label}: {ranked.candidate}", color)
    _limit(ax.axhline, target, f"target {100 * target:g} %")
    ax.set(xlabel="arrivals (requests/s)", ylabel="attainment", ylim=(0, 1.03), xlim=(0, None))
    _legend(ax)
    return figure


def _curve(ax: Axes, found: Found, label: str, color: str) -> None:
    points = sorted(found.judgements, key=lambda each: each.rate_per_s)
    rates = [each.rate_per_s for each in points]
    values = [each.worst.share.value for each in points]
    ax.errorbar(
        rates, values, yerr=_errors(points), fmt="o-", ms=4, lw=1, capsize=3, color=color,
        label=label,
    )  # fmt: skip
    if found.low_per_s:
        ax.axvline(found.low_per_s, color=color, ls=":", lw=1)


def _errors(points: Sequence[Judgement]) -> list[list[float]]:
    shares = [each.worst.share for each in points]
    below = [max(0.0, each.value - each.low) for each in shares]
    return [below, [max(0.0, each.high - each.value) for each in shares]]


def scale_figure(
    outcomes: Sequence[tuple[str, Outcome]], slos: Sequence[Slo], target: float
) -> Figure:
    """How tight limits may be, of one run of each at its rate."""
    figure, (ax,) = _figure(1)
    for color, (label, outcome) in zip((BLUE, ORANGE), outcomes, strict=False):
        ax.plot(SCALES, attained_at(outcome, slos, SCALES), color=color, label=label)
    _limit(ax.axhline, target, f"target {100 * target:g} %")
    ax.axvline(1.0, color=GREY, ls=":", lw=1, label="as asked")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="limits, times what was asked", ylabel="attainment", ylim=(0, 1.03))
    ax.set_xticks([0.25, 0.5, 1, 2, 4], labels=["¼", "½", "1", "2", "4"])
    _legend(ax)
    return figure


def attained_at(outcome: Outcome, slos: Sequence[Slo], times: Floats) -> Floats:
    """Share of the counted requests that keep limits so many times as large."""
    begin, end = Window().bounds(len(outcome.first_token_ps))
    worst = np.sort(np.max(list(scales(outcome, slos).values()), axis=0)[begin:end])
    return np.searchsorted(worst, times, side="right") / len(worst)


def front_figure(ranked: Sequence[Ranked], winner: Ranked | None) -> Figure:
    """Goodput against money and watts of all clusters; what no other beats in both is joined."""
    figure, axes = _figure(2)
    panels = ((axes[0], "USD per hour", _usd), (axes[1], "provisioned watts", _watts))
    for ax, label, cost in panels:
        _front(ax, ranked, winner, cost)
        most = 1.1 * max((cost(each) for each in ranked), default=1.0) or 1.0
        best = 1.1 * max((each.found.low_per_s for each in ranked), default=1.0) or 1.0
        ax.set(xlabel=label, ylabel="goodput (requests/s)", xlim=(0, most), ylim=(0, best))
    _legend(axes[1])
    return figure


def _usd(ranked: Ranked) -> float:
    return ranked.usd_per_hour


def _watts(ranked: Ranked) -> float:
    return ranked.verdict.provisioned_w


def _front(
    ax: Axes, ranked: Sequence[Ranked], winner: Ranked | None, cost: Callable[[Ranked], float]
) -> None:
    kinds = ((BLUE, "two pools", False), (ORANGE, "colocated", True))
    for color, label, is_colocated in kinds:
        some = [each for each in ranked if each.candidate.is_colocated is is_colocated]
        ax.plot(
            [cost(each) for each in some],
            [each.found.low_per_s for each in some],
            "o", ms=5, color=color, label=label,
        )  # fmt: skip
    best = front([Point(cost(each), each.found.low_per_s) for each in ranked])
    ax.plot([p.cost for p in best], [p.goodput for p in best], color=GREY, lw=1, label="front")
    if winner is not None:
        ax.plot(
            cost(winner), winner.found.low_per_s, "o", ms=11, mfc="none", mec=RED, label="chosen"
        )


def _figure(num_columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH_IN, 4.0), layout="constrained")
    axes = figure.subplots(1, num_columns, squeeze=False).flatten()
    for ax in axes:
        ax.grid(visible=True, color="#e5e7eb", lw=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _limit(line: Callable[..., object], at: float, label: str) -> None:
    line(at, color=RED, ls="--", lw=1.2, label=label)


def _legend(ax: Axes) -> None:
    """Below the axes: points may be anywhere in them."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize="small")


def figures(
    rivals: Labelled,
    outcomes: Sequence[tuple[str, Outcome]],
    every: Sequence[Ranked],
    promise: tuple[Sequence[Slo], float],
) -> Iterator[tuple[str, Figure]]:
    """Name and picture of each; `promise`: limits by class, and the target of the first."""
    slos, target = promise
    yield "attainment_over_rate", rate_figure(rivals, target)
    yield "attainment_over_slo_scale", scale_figure(outcomes, slos, target)
    yield "pareto_front", front_figure(every, rivals[0][1] if rivals else None)
