"""A choice's time as spans: end to end where they must be, and together the whole."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import InstanceId, RequestId
from core.timing import HandoffTiming, PrefillTiming
from router.record import RequestRecord
from router.spans import FIRST_GAP, NO_TOKEN, PARTS, REST, ROUTER_QUEUE, TTFT, Span, spans_of
from router.timeline import Timeline

durations = st.floats(0.0, 10.0, allow_nan=False)


def record(asked_s: float | None = None, admitted_s: float | None = None) -> RequestRecord:
    return RequestRecord(
        request_id=RequestId("r"),
        door="grpc",
        arrived_at_s=100.0,
        arrived_at_unix_s=1e9,
        asked_at_s=None if asked_s is None else 100.0 + asked_s,
        admitted_at_s=None if admitted_s is None else 100.0 + admitted_s,
    )


def timeline(
    *,
    called_s: Sequence[float] = (0.0,),
    prefill: PrefillTiming | None = None,
    tokens_s: Sequence[float] = (),
    handoff: HandoffTiming | None = None,
) -> Timeline:
    """Moments after the arrival at 100 s."""
    timeline = Timeline(arrived_at_s=100.0)
    for at_s in called_s:
        timeline.called(100.0 + at_s)
    if tokens_s:
        timeline.sampled(InstanceId("p0"), prefill or PrefillTiming())
        timeline.handed_over(InstanceId("d0"), handoff)
    for at_s in tokens_s:
        timeline.left(1, 100.0 + at_s)
    return timeline


def told(spans: Sequence[Span]) -> dict[str, list[tuple[str, float, float]]]:
    """Of each whole: its parts, when each begins after the arrival and how long it takes."""
    found = defaultdict(list)
    for span in spans:
        place = (span.name, round(span.start_s - 100.0, 6), round(span.duration_s, 6))
        found[span.part_of].append(place)
    return dict(found)


def test_a_request_without_trouble() -> None:
    spans = spans_of(
        record(0.1, 0.3),
        timeline(
            called_s=[0.4],
            prefill=PrefillTiming(queue_s=0.2, compute_s=0.5),
            tokens_s=[1.2, 1.5, 1.6, 1.7],
            handoff=HandoffTiming(
                source_tail_s=0.05,
                sink_tail_s=0.01,
                credit_wait_s=0.02,
                decode_queue_s=0.03,
                first_step_s=0.1,
            ),
        ),
        999.0,
    )
    assert told(spans) == {
        ROUTER_QUEUE: [("reading", 0.0, 0.1), ("admission", 0.1, 0.2), ("placing", 0.3, 0.1)],
        TTFT: [
            ("router_queue", 0.0, 0.4),
            ("lost_attempts", 0.4, 0.0),
            ("prefill_queue", 0.4, 0.2),
            ("prefill_compute", 0.6, 0.5),
            ("network", 1.1, 0.1),
        ],
        FIRST_GAP: [
            ("reserve_wait", 1.2, 0.02),
            ("exposed_transfer", 1.22, 0.06),
            ("decode_queue", 1.28, 0.03),
            ("first_step", 1.31, 0.1),
            ("network", 1.41, 0.09),
        ],
        REST: [("decode", 1.5, 0.2)],
    }


def test_attempts_before_the_one_that_counts_are_lost_time() -> None:
    line = timeline(called_s=[0.1, 2.1], prefill=PrefillTiming(compute_s=0.3), tokens_s=[2.5])
    parts = {span.name: span.duration_s for span in spans_of(record(0.0, 0.0), line, 9.0)}
    assert parts["lost_attempts"] == pytest.approx(2.0)
    assert parts["network"] == pytest.approx(0.1)


def test_a_prefill_called_after_the_first_token_is_none_of_its_time() -> None:
    line = timeline(called_s=[0.1], tokens_s=[0.5, 0.6])
    line.called(100.7)
    assert line.prefill_last_called_at_s == pytest.approx(100.1)


UNFINISHED = [
    # id                          record          called     names
    ("refused before it asked", record(), (), ["router_queue", "reading"]),
    ("never admitted", record(0.1), (), ["router_queue", "reading", "admission"]),
    (
        "no token",
        record(0.1, 0.2),
        (0.3,),
        ["router_queue", "reading", "admission", "placing", "waiting"],
    ),
]


@pytest.mark.parametrize(
    ("of", "called_s", "names"), [c[1:] for c in UNFINISHED], ids=[c[0] for c in UNFINISHED]
)
def test_without_a_token_there_is_what_it_waited_for(
    of: RequestRecord, called_s: Sequence[float], names: list[str]
) -> None:
    spans = spans_of(of, timeline(called_s=called_s), 101.0)
    assert [span.name for span in spans if span.duration_s] == names
    assert sum(s.duration_s for s in spans if s.part_of == NO_TOKEN) == pytest.approx(1.0)


@given(
    moments=st.lists(durations, min_size=6, max_size=12),
    prefill=st.builds(PrefillTiming, queue_s=durations, compute_s=durations),
    handoff=st.builds(
        HandoffTiming,
        source_tail_s=durations,
        credit_wait_s=durations,
        sink_tail_s=durations,
        decode_queue_s=durations,
        first_step_s=durations,
    ),
    num_calls=st.integers(1, 3),
)
def test_the_law(
    moments: list[float], prefill: PrefillTiming, handoff: HandoffTiming, num_calls: int
) -> None:
    """Whatever hosts claim: parts follow each other without gap, and sum to the whole."""
    moments.sort()
    asked_s, admitted_s, *rest = moments
    called_s, tokens_s = rest[:num_calls], rest[num_calls:]
    line = timeline(called_s=called_s, prefill=prefill, tokens_s=tokens_s, handoff=handoff)
    spans = spans_of(record(asked_s, admitted_s), line, 999.0)
    timing = line.timing()
    wholes = {
        TTFT: timing.ttft_s,
        ROUTER_QUEUE: timing.router_queue_s,
        FIRST_GAP: timing.first_gap_s,
    }
    for whole, duration_s in wholes.items():
        parts = [span for span in spans if span.part_of == whole]
        assert sum(span.duration_s for span in parts) == pytest.approx(duration_s, abs=1e-9)
        for one, after in pairwise(parts):
            assert after.start_s == pytest.approx(one.end_s, abs=1e-9)
    for whole, names in PARTS.items():
        found = tuple(span.name for span in spans if span.part_of == whole)
        assert found in (names, ())
    assert all(span.duration_s >= 0 for span in spans)
    assert sum(
        s.duration_s for s in spans if s.part_of in (TTFT, FIRST_GAP, REST)
    ) == pytest.approx(timing.e2e_s, abs=1e-9)
