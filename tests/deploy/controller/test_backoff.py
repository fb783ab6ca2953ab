"""When what failed is tried again."""

import pytest

from deploy.controller.backoff import MAX_PAUSE_S, STABLE_S, Backoff, pause_after

PAUSES = [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, MAX_PAUSE_S), (10**9, MAX_PAUSE_S)]


@pytest.mark.parametrize(("num_failures", "want_s"), PAUSES)
def test_pause_after(num_failures: int, want_s: float) -> None:
    assert pause_after(num_failures) == want_s


STORIES = [
    # id, seconds that each served before it ended, pause after the last
    ("never failed", [], 0.0),
    ("a start that fails", [0.0], 1.0),
    ("starts that fail", [0.0, 0.0, 0.0], 4.0),
    ("it served a while: at once", [5.0], 0.0),
    ("it served a while, again and again", [5.0, 5.0, 5.0], 4.0),
    ("a start fails after one that served a while", [5.0, 0.0], 2.0),
    ("a death after a start that failed", [0.0, 5.0], 2.0),
    ("it served long: at once", [STABLE_S], 0.0),
    ("it served long: all is forgotten", [0.0, 0.0, STABLE_S, 0.0], 1.0),
]


@pytest.mark.parametrize(
    ("served_s", "want_s"), [c[1:] for c in STORIES], ids=[c[0] for c in STORIES]
)
def test_wait(served_s: list[float], want_s: float) -> None:
    backoff = Backoff()
    for each_s in served_s:
        backoff = backoff.failed("make", "why", served_s=each_s, now_s=100.0)
    assert backoff.wait_s("make", 100.0) == want_s
    assert backoff.wait_s("make", 100.0 + want_s / 2) == want_s / 2
    assert backoff.wait_s("make", 100.0 + want_s + 1.0) == 0.0
    assert backoff.wait_s("other", 100.0) == 0.0


def test_the_last_reason_is_kept_until_it_is_well() -> None:
    backoff = Backoff()
    for reason in ("first", "second"):
        backoff = backoff.failed("make", reason, served_s=0.0, now_s=0.0)
    assert backoff.reasons == {"make": "second"}
    assert backoff.succeeded("other") == backoff
    assert backoff.succeeded("make") == Backoff()
