"""The last requests, and of those worth a look the last ones: never more than the bounds."""

import gc
import weakref
from collections.abc import Callable

import pytest

from core.errors import AttemptsExhausted, InvalidRequest, PeerLost, Saturated, UnknownRequest
from core.errors import FieldViolation as Violation
from core.ids import InstanceId, RequestId
from core.limits import MAX_NUM_CHOICES
from core.timing import HandoffTiming
from policy.table import Phase
from router.history import ATTEMPTS_PER_REQUEST, MAX_NOTABLE, MAX_RECENT, History
from router.record import (
    BUG,
    MAX_ATTEMPTS_KEPT,
    MAX_LOSSES_KEPT,
    MAX_MESSAGE_CHARS,
    Attempt,
    ChoiceRecord,
    Outcome,
    RequestRecord,
    outcome_of,
)
from router.timeline import Timeline

OK = Outcome("OK", "STOP")
DIED = Outcome("UNAVAILABLE", "ATTEMPTS_EXHAUSTED", "placed 8 times")
REFUSED = Outcome("RESOURCE_EXHAUSTED", "SATURATED")


def record(
    name: str,
    outcome: Outcome = OK,
    *,
    ttft_s: float = 0.1,
    num_attempts: int = 1,
    admitted: bool = True,
) -> RequestRecord:
    made = RequestRecord(
        request_id=RequestId(name), door="grpc", arrived_at_s=0.0, arrived_at_unix_s=1e9
    )
    if admitted:
        line = Timeline(arrived_at_s=0.0)
        line.left(1, ttft_s)
        made.choices = [ChoiceRecord(index=0, timeline=line, num_attempts=num_attempts)]
    made.ended(outcome, 1.0)
    return made


def flood(history: History, num: int = MAX_RECENT, **fields: object) -> None:
    for i in range(num):
        history.ended(record(f"flood-{i}", **fields))  # type: ignore[arg-type]


NOTABLE = [
    # id                    what happened                                   kept
    ("nothing special", lambda: record("it"), False),
    ("it failed", lambda: record("it", DIED), True),
    ("placed twice", lambda: record("it", num_attempts=2), True),
    ("slow", lambda: record("it", ttft_s=0.5), True),
    ("a little slower", lambda: record("it", ttft_s=0.25), False),
    ("the client left", lambda: record("it", Outcome("CANCELLED", "CANCELLED")), False),
    ("refused", lambda: record("it", REFUSED, admitted=False), False),
]


@pytest.mark.parametrize(("made", "kept"), [c[1:] for c in NOTABLE], ids=[c[0] for c in NOTABLE])
def test_what_busy_traffic_does_not_push_out(made: Callable[[], RequestRecord], kept: bool) -> None:
    history = History()
    flood(history, 10)
    history.ended(made())
    assert history.get("it").request_id == "it"
    flood(history)
    if kept:
        assert history.get("it").request_id == "it"
    else:
        with pytest.raises(UnknownRequest, match=f"last {MAX_RECENT}"):
            history.get("it")


def test_a_target_says_what_is_slow() -> None:
    history = History(slow_ttft_s=1.0)
    history.ended(record("fast", ttft_s=0.9))
    history.ended(record("slow", ttft_s=1.1))
    flood(history, ttft_s=0.1)
    assert history.get("slow")
    with pytest.raises(UnknownRequest):
        history.get("fast")


def test_both_rings_are_bounded() -> None:
    history = History()
    for i in range(MAX_RECENT + 2 * MAX_NOTABLE):
        history.ended(record(f"bad-ring-{i}", DIED))
    for i in range(MAX_RECENT):
        history.ended(record(f"good-ring-{i}"))
    gc.collect()
    # By type, not isinstance: that asks an object for its class, and some (torch's) warn then.
    held = [thing for thing in gc.get_objects() if type(thing) is RequestRecord]
    names = [one.request_id for one in held if "ring" in one.request_id]
    assert len(names) == MAX_RECENT + MAX_NOTABLE
    assert sum("bad" in name for name in names) == MAX_NOTABLE
    with pytest.raises(UnknownRequest):
        history.get("bad-ring-0")


def test_requests_of_many_attempts_are_fewer() -> None:
    history = History()
    many = range(MAX_RECENT)
    for i in many:
        made = record(f"r{i}", DIED)
        made.choices = [placed_often(index) for index in range(MAX_NUM_CHOICES)]
        history.ended(made)
    num_each = MAX_NUM_CHOICES * MAX_ATTEMPTS_KEPT
    num_kept = MAX_RECENT * ATTEMPTS_PER_REQUEST // num_each
    kept = [i for i in many if is_known(history, f"r{i}")]
    assert kept == list(many)[-num_kept:]


def placed_often(index: int) -> ChoiceRecord:
    choice = ChoiceRecord(index=index, timeline=Timeline(arrived_at_s=0.0))
    for i in range(2 * MAX_ATTEMPTS_KEPT):
        choice.placed(Attempt(number=i, placed_at_s=0.0, instance_ids={}, reasons=()))
    return choice


def is_known(history: History, name: str) -> bool:
    try:
        return history.get(name).request_id == name
    except UnknownRequest:
        return False


def test_one_that_runs_is_found_and_then_its_end() -> None:
    history = History()
    made = RequestRecord(
        request_id=RequestId("it"), door="grpc", arrived_at_s=0.0, arrived_at_unix_s=1e9
    )
    history.began(made)
    assert history.get("it").outcome.status == "RUNNING"
    made.ended(OK, 1.0)
    history.ended(made)
    assert history.get("it").outcome is OK


def test_a_duplicate_does_not_hide_whose_id_it_is() -> None:
    history = History()
    first = record("it")
    history.began(first)
    second = record("it", Outcome("ALREADY_EXISTS", "DUPLICATE_REQUEST"), admitted=False)
    history.began(second)
    history.ended(second)
    assert history.get("it") is first
    history.ended(first)
    assert history.get("it") is first


def test_of_two_with_the_same_id_the_newer_is_told() -> None:
    history = History()
    history.ended(record("it", DIED))
    newer = record("it")
    history.ended(newer)
    assert history.get("it") is newer
    flood(history)
    with pytest.raises(UnknownRequest):
        history.get("it")


ERRORS = [
    (Saturated("3 run"), Outcome("RESOURCE_EXHAUSTED", "SATURATED", "3 run")),
    (KeyboardInterrupt(), Outcome("CANCELLED", "CANCELLED")),
    (ValueError("w5 w6"), BUG),
    (ExceptionGroup("", [PeerLost("p0")]), Outcome("UNAVAILABLE", "PEER_LOST", "p0")),
    (ExceptionGroup("", [PeerLost("p0"), KeyError("w5")]), BUG),
    (
        InvalidRequest((Violation("a", "w5"), Violation("b[1]", "w6"))),
        Outcome("INVALID_ARGUMENT", "INVALID_REQUEST", "a, b[1]"),
    ),
]


@pytest.mark.parametrize(("error", "outcome"), ERRORS)
def test_errors_become_words(error: BaseException, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome


def test_a_record_is_bounded_and_holds_no_exception() -> None:
    """An exception holds its stack, and the stack the prompt."""
    choice = ChoiceRecord(index=0, timeline=Timeline(arrived_at_s=0.0))
    error = AttemptsExhausted("x" * 10_000)
    ref = weakref.ref(error)
    for i in range(20):
        names = {Phase.PREFILL: InstanceId("p0")}
        choice.placed(Attempt(number=i, placed_at_s=0.0, instance_ids=names, reasons=()))
        for _ in range(10):
            choice.lost(error, 1.0)
        choice.handed_over(HandoffTiming(num_kv_bytes=5, carrier="shm"))
    del error
    gc.collect()
    assert ref() is None
    assert choice.num_attempts == 20
    assert choice.num_kv_bytes == {"shm": 100}
    assert [attempt.number for attempt in choice.attempts] == list(range(20))[-MAX_ATTEMPTS_KEPT:]
    assert len(choice.attempts[-1].losses) == MAX_LOSSES_KEPT
    assert len(choice.attempts[-1].losses[0].message) == MAX_MESSAGE_CHARS
