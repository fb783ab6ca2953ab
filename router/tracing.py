"""A trace of every request, for an OpenTelemetry collector: one tree on the router's clock.

Built when a request has ended, from its record: what workers did is laid out as they reported it,
so they need no collector of their own. The SDK's thread sends; the event loop only queues.
"""

import asyncio
import logging
import threading
from contextlib import suppress

from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as TraceSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.ids import RouterId
from core.waiting import wait_at_most
from policy.table import Phase
from router.record import Attempt, ChoiceRecord, Loss, Outcome, RequestRecord
from router.spans import Span, spans_of

logger = logging.getLogger(__name__)

MAX_QUEUED_SPANS = 8192
"""Some 600 requests, about 10 MB; the oldest go when the collector is away or slow."""
SEND_EVERY_S = 1.0
MAX_SENT_SPANS = 512
"""At once, in one HTTP request."""
SEND_TIMEOUT_S = 5.0
"""Of one HTTP request with its retries: a collector is near, and what it misses is only a trace."""
CLOSE_TIMEOUT_S = 3.0
"""At the end of the router, for what is queued; its drain has taken its own time before."""
MAX_TRACE_PARENT_CHARS = 128
"""55 today; what is longer is no W3C traceparent."""


class Tracing:
    """One per router, with a tracer provider of its own."""

    def __init__(
        self, router_id: RouterId, exporter: SpanExporter, *, sample_ratio: float = 1.0
    ) -> None:
        """`sample_ratio` 0 to 1, of requests whose caller has not decided; the others follow it."""
        about = {"service.name": "baton-router", "service.instance.id": router_id}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(about),
            shutdown_on_exit=False,
            meter_provider=NoOpMeterProvider(),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=SEND_EVERY_S * 1000,
                max_export_batch_size=MAX_SENT_SPANS,
                meter_provider=NoOpMeterProvider(),
            )
        )
        self._tracer = self._provider.get_tracer("baton")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        ended_at_s = record.arrived_at_s if record.ended_at_s is None else record.ended_at_s
        root = self._tracer.start_span(
            "baton.request",
            self._parent(record.trace_parent),
            SpanKind.SERVER,
            start_time=_unix_ns(record, record.arrived_at_s),
        )
        if root.is_recording():
            root.set_attributes(_facts(record))
            _judge(root, record.outcome)
            within = set_span_in_context(root, Context())
            for choice in record.choices:
                self._tell_choice(record, choice, within, ended_at_s)
        root.end(_unix_ns(record, ended_at_s))

    async def close(self) -> None:
        """Send what is queued, CLOSE_TIMEOUT_S at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon: a collector that does not answer must not keep the process.
        threading.Thread(target=end, name="last traces", daemon=True).start()
        if not await wait_at_most(done, CLOSE_TIMEOUT_S):
            logger.warning("traces lost: the collector took longer than %g s", CLOSE_TIMEOUT_S)

    def _parent(self, trace_parent: str) -> Context:
        if not trace_parent or len(trace_parent) > MAX_TRACE_PARENT_CHARS:
            return Context()
        return self._propagator.extract({"traceparent": trace_parent}, Context())

    def _tell_choice(
        self, record: RequestRecord, choice: ChoiceRecord, within: Context, ended_at_s: float
    ) -> None:
        for span in spans_of(record, choice.timeline, ended_at_s):
            if span.duration_s:
                self._tell_span(record, choice, within, span)
        for attempt in choice.attempts:
            self._tell_attempt(record, choice, within, attempt)

    def _tell_span(
        self, record: RequestRecord, choice: ChoiceRecord, within: Context, span: Span
    ) -> None:
        told = self._tracer.start_span(
            f"baton.{span.name}",
            within,
            attributes={"baton.choice": choice.index, "baton.part_of": span.part_of},
            start_time=_unix_ns(record, span.start_s),
        )
        told.end(_unix_ns(record, span.end_s))

    def _tell_attempt(
        self, record: RequestRecord, choice: ChoiceRecord, within: Context, attempt: Attempt
    ) -> None:
        told = self._tracer.start_span(
            "baton.attempt",
            within,
            attributes={
                "baton.choice": choice.index,
                "baton.attempt": attempt.number,
                "baton.prefill_instance_id": attempt.instance_ids.get(Phase.PREFILL, ""),
                "baton.decode_instance_id": attempt.instance_ids.get(Phase.DECODE, ""),
                "baton.placement_reasons": attempt.reasons,
            },
            start_time=_unix_ns(record, attempt.placed_at_s),
        )
        for loss in attempt.losses:
            _tell_loss(record, told, loss)
        ended_at_s = attempt.placed_at_s if attempt.ended_at_s is None else attempt.ended_at_s
        told.end(_unix_ns(record, ended_at_s))


def _tell_loss(record: RequestRecord, span: TraceSpan, loss: Loss) -> None:
    why = {"baton.reason": loss.reason, "baton.message": loss.message}
    span.add_event("baton.lost", why, _unix_ns(record, loss.at_s))
    span.set_status(Status(StatusCode.ERROR, loss.reason))


def _judge(span: TraceSpan, outcome: Outcome) -> None:
    if outcome.is_error:
        span.set_status(Status(StatusCode.ERROR, f"{outcome.reason}: {outcome.message}"))


def _facts(record: RequestRecord) -> dict[str, str | int]:
    return {
        "baton.request_id": record.request_id,
        "baton.door": record.door,
        "baton.model": record.model,
        "baton.tenant": record.tenant,
        "baton.status": record.outcome.status,
        "baton.reason": record.outcome.reason,
        "baton.num_prompt_tokens": record.num_prompt_tokens,
        "baton.num_output_tokens": sum(c.timeline.num_tokens for c in record.choices),
        "baton.num_choices": len(record.choices),
        "baton.num_attempts": record.num_attempts,
    }


def _unix_ns(record: RequestRecord, at_s: float) -> int:
    """A moment of the router's clock on the wall clock: nanoseconds since 1970."""
    return int((record.arrived_at_unix_s + at_s - record.arrived_at_s) * 1e9)
