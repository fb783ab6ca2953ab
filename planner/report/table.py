"""What a search found, as a table for people: best first, the best colocated cluster last."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from planner.report.texts import goodput, percent, quantile_texts, seconds, share, usd, watts
from planner.search.question import Answer
from planner.search.results import Ranked, Verdict
from planner.search.sensitivity import Sensitivity

SHOWN_AT_MOST = 8
"""Clusters of two pools."""
CLUSTERS = ("#", "cluster", "instances", "GPUs", "goodput per GPU (95 %)", "attainment (95 %)")
FIGURES = (
    "#",
    "TTFT P50 / P90 / P99",
    "TPOT P50 / P90 / P99",
    "USD per M output",
    "W average / installed",
    "links",
    "bottleneck",
)
LEFT = ("cluster", "bottleneck", "change")


def answer_tables(answer: Answer) -> tuple[Table, Table]:
    """The clusters, and what each comes to; goodput in requests/s and GPU."""
    clusters, figures = _table(_title(answer), CLUSTERS), _table("", FIGURES)
    for place, each in enumerate(answer.ranked[:SHOWN_AT_MOST], 1):
        clusters.add_row(*_cluster(str(place), each))
        figures.add_row(*_figures(str(place), each.verdict))
    if answer.colocated is not None:
        clusters.add_section()
        clusters.add_row(*_cluster("colocated", answer.colocated))
        figures.add_section()
        figures.add_row(*_figures("colocated", answer.colocated.verdict))
    if (hidden := len(answer.ranked) - SHOWN_AT_MOST) > 0:
        clusters.caption = f"{hidden} more in --json"
    return clusters, figures


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left", caption_justify="left")
    for name in headings:
        table.add_column(name, justify="left" if name in LEFT else "right")
    return table


def _title(answer: Answer) -> str:
    rates = {f"{each.verdict.rate_per_s:.4g}" for each in _all(answer)}
    if len(rates) == 1:
        return f"At {rates.pop()} requests/s; ✗ does not attain"
    return "Each at its own goodput; ✗ does not attain"


def _all(answer: Answer) -> Iterator[Ranked]:
    yield from answer.ranked
    if answer.colocated is not None:
        yield answer.colocated


def _cluster(place: str, ranked: Ranked) -> tuple[str, ...]:
    candidate = ranked.candidate
    return (
        place if ranked.attains else f"{place} ✗",
        "\n".join(map(str, candidate.pools)) + _segments(candidate.num_segments),
        str(candidate.num_instances),
        str(candidate.num_gpus),
        goodput(ranked.goodput_rps_per_gpu),
        share(ranked.verdict.judgement.worst.share),
    )


def _figures(place: str, verdict: Verdict) -> tuple[str, ...]:
    return (
        place,
        quantile_texts(verdict.ttft_s),
        quantile_texts(verdict.tpot_s),
        usd(verdict.usd_per_million_output_tokens),
        watts(verdict.average_w, verdict.provisioned_w),
        percent(verdict.link_load),
        verdict.bottleneck.value,
    )


def _segments(num_segments: int) -> str:
    if not num_segments:
        return ""
    return "\non shared hosts" + (f", in {num_segments} segments" if num_segments > 1 else "")


def sensitivity_table(found: Sequence[Sensitivity], verdict: Verdict) -> Table:
    """What becomes of the plan when the world is not as told."""
    headings = ("change", "attainment (95 %)", "points", "goodput", "still attains")
    table = _table("What if", headings)
    worst = verdict.judgement.worst.share
    table.add_row("as planned", share(worst), "", "", "yes" if verdict.judgement.attains else "no")
    for each in found:
        table.add_row(
            each.name,
            share(each.judgement.worst.share),
            f"{100 * each.attainment_change:+.1f}",
            f"{100 * each.goodput_change:+.0f} %" if each.goodput_change else "",
            "yes" if each.judgement.attains else "no",
        )
    return table


def nearest(answer: Answer, rate_per_s: float | None) -> Iterator[str]:
    """Why nothing attains: limits that nothing keeps, and the nearest to them; else the rate."""
    for reach in answer.missed:
        limit = reach.limit.removesuffix("_s").upper()
        yield (
            f"infeasible: {limit} within {seconds(reach.limit_s)} (class {reach.class_name}) is "
            f"kept by no layout at any rate; the nearest is {seconds(reach.reached_s)}"
        )
    if answer.missed:
        return
    if rate_per_s is None:
        yield "infeasible: no cluster of these GPUs attains the target at any rate"
    else:
        yield (
            f"infeasible: no cluster of these GPUs attains the target at {rate_per_s:.4g} "
            f"requests/s; the most that one does is {answer.best_rate_per_s:.4g}"
        )
    first = next(iter(_all(answer)), None)
    if first is not None:
        yield from _scaled(first)


def _scaled(ranked: Ranked) -> Iterator[str]:
    verdict, marginals = ranked.verdict, ranked.verdict
    for name, found in (("TTFT", marginals.ttft_share), ("TPOT", marginals.tpot_share)):
        if found is not None:
            yield f"{ranked.candidate} at {verdict.rate_per_s:.4g}/s: {name} kept by {share(found)}"
    yield f"limits {verdict.slo_scale:.3g} times as large would be attained there"
