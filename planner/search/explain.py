"""Why an answer is what it is, in sentences: what was looked at, what fell out, what decided."""

from collections.abc import Iterator, Sequence

from core.member import Role
from planner.search.results import Ranked
from planner.search.screen import Screened, Screening, best

NAMED_AT_MOST = 6
"""Layouts that one sentence names."""


def reasons(
    screens: Sequence[Screening],
    ranked: Sequence[Ranked],
    colocated: Ranked | None,
    rate_per_s: float | None,
) -> Iterator[str]:
    """In the order in which it was found out."""
    for screening in screens:
        yield from _of_phase(screening)
    if ranked:
        yield from _of_clusters(ranked, rate_per_s)
    yield from _of_rivals(next((r for r in ranked if r.attains), None), colocated)


def _of_phase(screening: Screening) -> Iterator[str]:
    what = {Role.PREFILL: "prefill alone, judged on TTFT", Role.DECODE: "decode alone, on TPOT"}
    name, found = what.get(screening.role, "both phases on each instance"), screening.found
    if not found:
        yield f"{name}: no layout fits the GPUs"
        return
    num = len(found) + len(screening.beaten)
    chosen = best(found)
    if chosen is None:
        yield f"{name}: none of {num} layouts keeps its limits at any rate"
    else:
        yield (
            f"{name}: of {num} layouts {_layout(chosen)} attains most per GPU, "
            f"{chosen.per_gpu:.3g} requests/s; its {chosen.bound} allows no more than "
            f"{chosen.found.most_per_s / chosen.pool.num_gpus:.3g}"
        )
    if screening.beaten:
        yield (
            f"{name}: {len(screening.beaten)} layouts not tried: work conservation allows them "
            "no more than as many GPUs of smaller ones attain"
        )
    yield from _too_slow(name, found)


def _too_slow(name: str, screened: Sequence[Screened]) -> Iterator[str]:
    late = [each for each in screened if not all(reach.is_met for reach in each.reaches)]
    if not late:
        return
    named = ", ".join(map(_lateness, late[:NAMED_AT_MOST]))
    more = f" and {len(late) - NAMED_AT_MOST} more" if len(late) > NAMED_AT_MOST else ""
    yield f"{name}: too slow even when requests never meet: {named}{more}"


def _lateness(screened: Screened) -> str:
    worst = max(screened.reaches, key=lambda each: each.reached_s / each.limit_s)
    limit = worst.limit.removesuffix("_s")
    return f"{_layout(screened)} ({limit} {worst.reached_s:.3g} s, limit {worst.limit_s:g} s)"


def _layout(screened: Screened) -> str:
    pool = screened.pool
    on = f" on {pool.hardware}" if pool.hardware else ""
    how = f" {pool.scheduling.name.lower()}" if pool.role is Role.MIXED else ""
    return f"{pool.layout}{on}{how}"


def _of_clusters(ranked: Sequence[Ranked], rate_per_s: float | None) -> Iterator[str]:
    first = ranked[0]
    verdict, worst = first.verdict, first.verdict.judgement.worst
    yield (
        f"simulated as a whole: {len(ranked)} clusters; the first is {first.candidate}, "
        f"{first.candidate.num_gpus} GPUs"
    )
    share, target = worst.share, worst.criterion.target
    yield (
        f"at {verdict.rate_per_s:.4g} requests/s {100 * share.value:.1f} % "
        f"({100 * share.low:.1f} to {100 * share.high:.1f}) keep all their limits, "
        f"{100 * target:g} % must; {verdict.bottleneck.value} is what binds"
    )
    if not verdict.judgement.is_steady:
        yield f"at {verdict.rate_per_s:.4g} requests/s the backlog grows"
    if rate_per_s is not None and not first.attains:
        yield (
            f"{rate_per_s:.4g} requests/s are not attained; {first.found.low_per_s:.4g} are; "
            f"with limits {verdict.slo_scale:.3g} times as large they would be"
        )


def _of_rivals(first: Ranked | None, colocated: Ranked | None) -> Iterator[str]:
    """By the same latency models: what two pools are worth as an architecture."""
    if colocated is None:
        yield "no colocated cluster keeps its limits at any rate"
        return
    theirs = colocated.goodput_rps_per_gpu.value
    yield f"colocated, by the same latency models: {colocated.candidate}, {theirs:.3g} per GPU"
    if first is None:
        yield "no cluster of two pools attains what is asked for"
        return
    mine = first.goodput_rps_per_gpu.value
    if theirs > mine:
        yield (
            f"colocated wins: {theirs:.3g} requests/s per GPU against {mine:.3g}; "
            "two pools are worth it only for tighter limits or other work"
        )
    elif theirs > 0:
        yield f"two pools attain {mine / theirs:.2f} times as much per GPU as colocated instances"
