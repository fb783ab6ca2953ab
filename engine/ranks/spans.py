"""When each rank computed each micro-batch of a step, and how far the stages overlap."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MICRO_BATCH_MARKS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Span(NamedTuple):
    """One rank's work on one micro-batch, in seconds of the host's monotonic clock."""

    rank: int
    stage: int
    micro_batch: int
    began_s: float
    ended_s: float


def overlap_s(timeline: Sequence[Span]) -> float:
    """How long two stages or more computed at the same time."""
    moments = sorted({moment for span in timeline for moment in (span.began_s, span.ended_s)})
    return sum(
        stop - start
        for start, stop in pairwise(moments)
        if len({s.stage for s in timeline if s.began_s <= start and stop <= s.ended_s}) > 1
    )


def duration_s(timeline: Sequence[Span]) -> float:
    """From the first micro-batch's begin to the last one's end; 0 of nothing."""
    if not timeline:
        return 0.0
    return max(span.ended_s for span in timeline) - min(span.began_s for span in timeline)


def render(timeline: Sequence[Span], width: int = 72) -> str:
    """One line per rank over time; a column shows the micro-batch computed in it."""
    if not timeline:
        return "nothing was computed"
    begin_s, whole_s = min(span.began_s for span in timeline), duration_s(timeline)
    lines = []
    for rank in sorted({span.rank for span in timeline}):
        spans = [span for span in timeline if span.rank == rank]
        cells = ["."] * width
        for span in spans:
            first = _column(span.began_s - begin_s, whole_s, width)
            last = max(first + 1, _column(span.ended_s - begin_s, whole_s, width + 1))
            mark = MICRO_BATCH_MARKS[span.micro_batch % len(MICRO_BATCH_MARKS)]
            cells[first:last] = mark * (last - first)
        lines.append(f"stage {spans[0].stage} rank {rank} |{''.join(cells)}|")
    lines.append(f"{whole_s * 1e3:.1f} milliseconds, {overlap_s(timeline) * 1e3:.1f} overlapped")
    return "\n".join(lines)


def _column(moment_s: float, whole_s: float, num_columns: int) -> int:
    """0 to num_columns - 1."""
    last = num_columns - 1
    return 0 if whole_s <= 0 else min(last, int(moment_s / whole_s * num_columns))
