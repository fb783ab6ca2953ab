"""Requests sent when they are due, whatever becomes of those before: an open loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from bench.load.errors import BadAnswer, InFlightLimit
from bench.load.outcome import Answer, Event, Outcome
from core.clock import Clock, MonotonicClock
from core.errors import BatonError, DeadlinePassed

DEFAULT_MAX_IN_FLIGHT = 10_000
"""A connection each: below the ports (28,000 on Linux) one machine has towards one server."""
MAX_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to send."""

    at_s: float
    """From the start of the load."""
    token_ids: Sequence[int]
    max_tokens: int
    tenant: str = ""


Ask = Callable[[], AsyncGenerator[Event, None]]
"""Sends one request and gives what comes back. It ends after a whole answer and raises a
BatonError for everything else; closing it cancels the request."""


class Target(Protocol):
    """Whom requests are sent to."""

    def prepare(self, arrival: Arrival) -> Ask:
        """Do all that can be done before the request is due."""
        ...


@dataclass(slots=True)
class Tally:
    """How far a load has got; the generator counts, others look."""

    num_sent: int = 0
    num_ended: int = 0
    num_failed: int = 0

    @property
    def num_in_flight(self) -> int:
        """Sent, not ended."""
        return self.num_sent - self.num_ended


class LoadGenerator:
    """Sends one load to one target."""

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        clock: Clock | None = None,
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._clock = clock or MonotonicClock()
        self._began_at_s = self._clock.now_s()
        self.tally = Tally()

    async def offer(self, arrivals: Iterable[Arrival]) -> list[Outcome]:
        """Send each when it is due; return when all have ended, in order of arrival."""
        self._began_at_s = self._clock.now_s()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for arrival in arrivals:
                ask = self._target.prepare(arrival)
                await asyncio.sleep(max(0.0, arrival.at_s - self._now_s()))
                tasks.append(group.create_task(self._outcome(arrival, ask)))
                # It sends before the next request is prepared, rather than after.
                await asyncio.sleep(0)
        return [task.result() for task in tasks]

    async def _outcome(self, arrival: Arrival, ask: Ask) -> Outcome:
        late_s, answer, failure = self._now_s() - arrival.at_s, Answer(), None
        self.tally.num_sent += 1
        try:
            await self._read(ask, answer)
        except BatonError as error:
            failure = error
            self.tally.num_failed += 1
        finally:
            self.tally.num_ended += 1
        return Outcome(
            at_s=arrival.at_s,
            late_s=late_s,
            ended_at_s=self._now_s(),
            num_prompt_tokens=len(arrival.token_ids),
            max_tokens=arrival.max_tokens,
            answer=answer,
            error="" if failure is None else failure.reason,
            detail=str(failure or "")[:MAX_DETAIL_CHARS],
        )

    async def _read(self, ask: Ask, answer: Answer) -> None:
        if self.tally.num_in_flight > self._max_in_flight:
            # To wait for room would be to let earlier answers decide when this one is sent.
            raise InFlightLimit(
                f"{self._max_in_flight} requests in flight, the limit (--max-in-flight): not sent"
            )
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(ask()) as events:
                async for event in events:
                    answer.take(event, self._now_s())
        except TimeoutError:
            raise DeadlinePassed(
                f"not ended {self._timeout_s:g} s after it was sent, the limit (--timeout)"
            ) from None
        if not answer.times_s:
            raise BadAnswer("ended well without any token")

    def _now_s(self) -> float:
        return self._clock.now_s() - self._began_at_s
