"""One choice's time as spans on the router's clock, from what each host measured on its own.

What follows one another is laid end to end, so the parts of a whole always sum to it; what a host
claims beyond the room there is, is shrunk to fit: clocks run apart, and a network is never
negative.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from core import slo
from router.record import RequestRecord
from router.timeline import Timeline

TTFT, FIRST_GAP, REST, ROUTER_QUEUE, NO_TOKEN = (
    "ttft",
    "first_gap",
    "rest",
    "router_queue",
    "no_token",
)
"""What spans are parts of. Those of ROUTER_QUEUE lie within the span of that name."""
PARTS: Mapping[str, tuple[str, ...]] = {
    TTFT: ("router_queue", "lost_attempts", "prefill_queue", "prefill_compute", "network"),
    FIRST_GAP: ("reserve_wait", "exposed_transfer", "decode_queue", "first_step", "network"),
}
"""In order; what is left to the network lies anywhere between the others, and is shown last."""


class Span(NamedTuple):
    """What a choice did for a while; a tuple, because every request makes a dozen."""

    name: str
    part_of: str
    start_s: float
    """Moment on the router's clock."""
    duration_s: float

    @property
    def end_s(self) -> float:
        """Moment on the router's clock."""
        return self.start_s + self.duration_s


def spans_of(record: RequestRecord, timeline: Timeline, now_s: float) -> tuple[Span, ...]:
    """In order of their beginning, a whole before its parts.

    `now_s` ends what has not ended.
    """
    end_s = now_s if record.ended_at_s is None else record.ended_at_s
    called_at_s = timeline.prefill_called_at_s
    spans = [*_queue(record, end_s if called_at_s is None else called_at_s, timeline)]
    if timeline.first_token_at_s is None:
        if called_at_s is not None:
            spans.append(Span("waiting", NO_TOKEN, called_at_s, end_s - called_at_s))
        return tuple(spans)
    return (*spans, *_ttft(timeline, timeline.first_token_at_s), *_later(timeline))


def _queue(record: RequestRecord, until_s: float, timeline: Timeline) -> Iterator[Span]:
    """Arrival to the first Prefill call, and what was waited for."""
    whole = TTFT if timeline.first_token_at_s is not None else NO_TOKEN
    yield _between("router_queue", whole, record.arrived_at_s, until_s)
    asked_at_s = until_s if record.asked_at_s is None else record.asked_at_s
    admitted_at_s = until_s if record.admitted_at_s is None else record.admitted_at_s
    yield _between("reading", ROUTER_QUEUE, record.arrived_at_s, asked_at_s)
    yield _between("admission", ROUTER_QUEUE, asked_at_s, admitted_at_s)
    yield _between("placing", ROUTER_QUEUE, admitted_at_s, until_s)


def _ttft(timeline: Timeline, first_token_at_s: float) -> Iterator[Span]:
    """From the Prefill call on; before it there is the router's queue."""
    called_at_s = timeline.prefill_called_at_s or timeline.arrived_at_s
    began_at_s = timeline.prefill_last_called_at_s or called_at_s
    parts = slo.ttft_parts(first_token_at_s - began_at_s, 0.0, timeline.prefill)
    yield _between("lost_attempts", TTFT, called_at_s, began_at_s)
    told = (
        ("prefill_queue", parts.prefill_queue_s),
        ("prefill_compute", parts.prefill_compute_s),
    )
    yield from _laid(TTFT, began_at_s, first_token_at_s, told)


def _later(timeline: Timeline) -> Iterator[Span]:
    first_at_s, second_at_s = timeline.first_token_at_s, timeline.second_token_at_s
    if first_at_s is None or second_at_s is None:
        return
    parts = slo.first_gap_parts(second_at_s - first_at_s, timeline.handoff)
    told = (
        # In the order in which they happen: what waits for room is sent when there is some.
        ("reserve_wait", parts.reserve_wait_s),
        ("exposed_transfer", parts.exposed_transfer_s),
        ("decode_queue", parts.decode_queue_s),
        ("first_step", parts.first_step_s),
    )
    yield from _laid(FIRST_GAP, first_at_s, second_at_s, told)
    yield _between("decode", REST, second_at_s, timeline.last_token_at_s)


def _laid(
    whole: str, start_s: float, end_s: float, told: Sequence[tuple[str, float]]
) -> Iterator[Span]:
    """One after the other, then the remainder: the network's."""
    room_s, told_s = end_s - start_s, sum(duration_s for _, duration_s in told)
    share = min(1.0, room_s / told_s) if told_s > 0 else 1.0
    at_s = start_s
    for name, duration_s in told:
        yield Span(name, whole, at_s, duration_s * share)
        at_s += duration_s * share
    yield _between("network", whole, min(at_s, end_s), end_s)


def _between(name: str, whole: str, start_s: float, end_s: float) -> Span:
    return Span(name, whole, start_s, max(0.0, end_s - start_s))
