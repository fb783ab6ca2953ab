"""The open loop, on a virtual clock: when requests are sent, and what latencies count from."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.offer import Arrival, Ask, LoadGenerator
from bench.load.outcome import Event, Outcome, Tokens, Usage
from core import slo
from core.clock import ManualClock
from core.errors import BatonError, Saturated
from tests.bench.load.virtual import Scripted, arrivals_at, run_virtually

ANSWER = ((0.4, Tokens(1)), (0.45, Tokens(1)), (0.55, Tokens(2)))


def offered(
    *times_s: float,
    script: tuple[tuple[float, Event], ...] = ANSWER,
    error: BatonError | None = None,
    prepare_s: float = 0.0,
    timeout_s: float = 10.0,
    max_in_flight: int = 100,
) -> tuple[list[Outcome], Scripted, float]:
    """Outcomes, the target, and how long it took."""

    async def offer(clock: ManualClock) -> tuple[list[Outcome], Scripted, float]:
        target = Scripted(clock, script, error, prepare_s)
        generator = LoadGenerator(
            target, timeout_s=timeout_s, max_in_flight=max_in_flight, clock=clock
        )
        outcomes = await generator.offer(arrivals_at(*times_s))
        assert generator.tally.num_in_flight == 0
        return outcomes, target, clock.now_s() - 1000.0

    return run_virtually(offer)


def ttfts_s(outcomes: list[Outcome]) -> list[float]:
    return [slo.ttft_s(m) for o in outcomes if (m := o.moments) is not None]


def test_scripted_moments_give_exactly_the_known_latencies() -> None:
    (outcome,), _, took_s = offered(2.0)
    moments = outcome.answered
    assert moments is not None
    assert slo.ttft_s(moments) == pytest.approx(0.4)
    assert slo.first_gap_s(moments) == pytest.approx(0.05)
    assert slo.tpot_s(moments) == pytest.approx(0.15 / 3)
    assert slo.e2e_s(moments) == pytest.approx(0.55)
    assert list(outcome.answer.pauses_s()) == pytest.approx([0.05, 0.1])
    assert (outcome.late_s, outcome.ended_at_s, took_s) == pytest.approx((0, 2.55, 2.55))
    assert (outcome.num_prompt_tokens, outcome.answer.num_output_tokens) == (3, 4)


@given(st.lists(st.floats(0, 50), max_size=30).map(sorted), st.floats(0, 100))
def test_every_request_is_sent_when_due_however_slow_the_answers(
    times_s: list[float], answer_s: float
) -> None:
    outcomes, target, _ = offered(*times_s, script=((answer_s, Tokens(1)),), timeout_s=1e3)
    assert target.asked_at_s == pytest.approx(times_s, abs=1e-6)
    assert ttfts_s(outcomes) == pytest.approx([answer_s] * len(times_s), abs=1e-6)


class OneByOne:
    """Serves one request at a time, each for two seconds: a server that falls behind."""

    def __init__(self) -> None:
        self.place = asyncio.Semaphore(1)

    def prepare(self, _: Arrival) -> Ask:
        return partial(self._ask)

    async def _ask(self) -> AsyncGenerator[Event, None]:
        async with self.place:
            await asyncio.sleep(2.0)
            yield Tokens(1)


def test_a_server_that_falls_behind_cannot_hide_it() -> None:
    async def offer(clock: ManualClock) -> list[Outcome]:
        generator = LoadGenerator(OneByOne(), timeout_s=100.0, clock=clock)
        return await generator.offer(arrivals_at(0, 1, 2, 3, 4))

    # A closed loop would have asked five times, every two seconds, and have seen 2 s each time.
    assert ttfts_s(run_virtually(offer)) == pytest.approx([2, 3, 4, 5, 6])


def test_our_own_delay_is_told_and_is_part_of_the_latency() -> None:
    outcomes, target, _ = offered(0.1, 0.2, 0.3, prepare_s=0.25)
    assert target.asked_at_s == pytest.approx([0.25, 0.5, 0.75])
    assert [o.late_s for o in outcomes] == pytest.approx([0.15, 0.3, 0.45])
    # The first token of the first answer comes at 0.65, while the third request is prepared: it
    # is read at 0.75. The share of a core that a run used tells how likely that was.
    assert ttfts_s(outcomes) == pytest.approx([0.65, 0.7, 0.85])


def test_what_can_be_prepared_before_it_is_due_costs_nothing() -> None:
    outcomes, _, _ = offered(1.0, 2.0, prepare_s=0.9)
    assert [o.late_s for o in outcomes] == pytest.approx([0, 0])


def test_the_guard_fails_requests_and_delays_none() -> None:
    outcomes, target, _ = offered(0.0, 0.1, 0.2, 0.6, max_in_flight=2)
    assert [o.error for o in outcomes] == ["", "", "IN_FLIGHT_LIMIT", ""]
    assert "--max-in-flight" in outcomes[2].detail
    assert target.asked_at_s == pytest.approx([0.0, 0.1, 0.6])


FAILURES = [
    # id              script                     error              timeout reason
    ("refused", (), Saturated("the queue is full"), 1.0, "SATURATED"),
    ("broke off", ANSWER[:1], Saturated("the queue is full"), 1.0, "SATURATED"),
    ("too late", ((0.1, Tokens(1)), (5.0, Tokens(1))), None, 1.0, "DEADLINE_PASSED"),
    ("never began", ((5.0, Tokens(1)),), None, 1.0, "DEADLINE_PASSED"),
    ("said nothing", (), None, 1.0, "BAD_ANSWER"),
    ("only counted", ((0.1, Usage(3, 0)),), None, 1.0, "BAD_ANSWER"),
]


@pytest.mark.parametrize(
    ("script", "error", "timeout_s", "reason"),
    [c[1:] for c in FAILURES],
    ids=[c[0] for c in FAILURES],
)
def test_what_failed_is_no_answer(
    script: tuple[tuple[float, Event], ...],
    error: BatonError | None,
    timeout_s: float,
    reason: str,
) -> None:
    (outcome,), target, _ = offered(0.0, script=script, error=error, timeout_s=timeout_s)
    assert (outcome.error, outcome.answered) == (reason, None)
    assert outcome.detail
    assert outcome.ended_at_s <= timeout_s
    assert target.num_closed == 1
