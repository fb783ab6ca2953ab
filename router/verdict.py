"""What became of a request in one sentence: the first thing to know, for people."""

from collections.abc import Iterator, Sequence

from router.record import ChoiceRecord, RequestRecord
from router.spans import FIRST_GAP, TTFT, Span, spans_of


def verdict(record: RequestRecord, now_s: float) -> str:
    """Of one that ended, or of one that runs."""
    end_s = now_s if record.ended_at_s is None else record.ended_at_s
    after = _seconds(end_s - record.arrived_at_s)
    outcome = record.outcome
    why = f"{outcome.reason}: {outcome.message}" if outcome.message else outcome.reason
    if outcome.is_error:
        verb = "failed" if record.choices else "refused"
        return "; ".join((f"{verb} after {after}: {why}", *_troubles(record)))
    if record.ended_at_s is None:
        return "; ".join((f"runs since {after}: {_where(record)}", *_troubles(record)))
    return "; ".join((*_times(record, now_s), *_troubles(record))) or f"ended after {after}"


def _where(record: RequestRecord) -> str:
    if record.asked_at_s is None:
        return "its prompt is read"
    if record.admitted_at_s is None:
        return f"it waits for admission, {record.num_queued_before} before it when it came"
    num_tokens = sum(choice.timeline.num_tokens for choice in record.choices)
    if num_tokens:
        return f"{num_tokens} output tokens so far"
    if not record.num_attempts:
        return "it waits for an instance"
    return "it waits for its first token"


def _times(record: RequestRecord, now_s: float) -> Iterator[str]:
    """Of its slowest choice."""
    choices = [c for c in record.choices if c.timeline.first_token_at_s is not None]
    if not choices:
        return
    slowest = max(choices, key=lambda choice: choice.timeline.last_token_at_s)
    timing = slowest.timeline.timing()
    spans = spans_of(record, slowest.timeline, now_s)
    yield f"TTFT {_seconds(timing.ttft_s)}{_mostly(spans, TTFT)}"
    if timing.first_gap_s:
        yield f"first gap {_seconds(timing.first_gap_s)}{_mostly(spans, FIRST_GAP)}"
    if timing.tpot_s:
        yield f"then {_seconds(timing.tpot_s)} a token"


def _mostly(spans: Sequence[Span], whole: str) -> str:
    parts = [span for span in spans if span.part_of == whole]
    most = max(parts, key=lambda span: span.duration_s, default=None)
    if most is None or not most.duration_s:
        return ""
    return f", {_seconds(most.duration_s)} of it {most.name.replace('_', ' ')}"


def _troubles(record: RequestRecord) -> Iterator[str]:
    most = max(record.choices, key=lambda choice: choice.num_attempts, default=None)
    if most is not None and most.num_attempts > 1:
        yield f"placed {most.num_attempts} times: {_reasons(most)}"


def _reasons(choice: ChoiceRecord) -> str:
    return ", ".join(dict.fromkeys(choice.lost_reasons))


def _seconds(duration_s: float) -> str:
    if duration_s < 1:
        return f"{duration_s * 1000:.3g} ms"
    return f"{duration_s:.3g} s"
