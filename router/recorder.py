"""Follows every request from the door to its end, and tells whoever keeps count."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from core.clock import Clock, unix_time_s
from core.ids import RequestId
from router.ended import EndedRequests
from router.history import History
from router.metrics import Metrics
from router.record import RequestRecord, outcome_of


class Traces(Protocol):
    """Where a trace of each request goes; router.tracing has it, which few routers import."""

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        ...

    async def close(self) -> None:
        """Deliver what is left, within a bound."""
        ...


class Recorder:
    """One per router: its metrics, its history, its traces, and numbers for planning."""

    def __init__(
        self, clock: Clock, metrics: Metrics, history: History, traces: Traces | None
    ) -> None:
        """`traces` None: nobody wants them."""
        self.metrics = metrics
        self.history = history
        self.ended = EndedRequests()
        self._traces = traces
        self._clock = clock

    @contextmanager
    def recording(
        self, request_id: RequestId, door: str, trace_parent: str
    ) -> Iterator[RequestRecord]:
        """Around all that is done for one request; an error passes, noted."""
        record = RequestRecord(
            request_id=request_id,
            door=door,
            trace_parent=trace_parent,
            arrived_at_s=self._clock.now_s(),
            arrived_at_unix_s=unix_time_s(),
        )
        self.history.began(record)
        try:
            yield record
        except BaseException as error:
            record.ended(outcome_of(error), self._clock.now_s())
            raise
        else:
            record.ended(record.finished, self._clock.now_s())
        finally:
            self._tell(record)

    async def close(self) -> None:
        """The router ends: nothing is recorded from now on."""
        if self._traces is not None:
            await self._traces.close()

    def _tell(self, record: RequestRecord) -> None:
        self.metrics.ended(record)
        self.history.ended(record)
        self.ended.ended(record)
        if self._traces is not None:
            self._traces.ended(record)
