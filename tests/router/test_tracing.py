"""One trace a request: a tree on one clock, of what router and workers reported."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from core.config import RouterConfig
from core.errors import PeerLost
from core.ids import InstanceId, RequestId, RouterId
from core.timing import HandoffTiming, PrefillTiming
from policy.table import Phase
from router.otlp import traces_url
from router.record import Attempt, ChoiceRecord, Outcome, RequestRecord
from router.timeline import Timeline
from router.tracing import Tracing
from rpc.pb import generation_pb2, types_pb2
from tests.router.asking import ask_raw
from tests.router.conftest import OpenStage
from tests.router.script import BOUND_S

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE_PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNIX_S = 1_700_000_000.0
ROUTER = RouterId("router-0")


def record(trace_parent: str = "", num_choices: int = 1) -> RequestRecord:
    """Arrived at 100 s, answered from 101 s to 102 s; its first attempt was lost."""
    made = RequestRecord(
        request_id=RequestId("it"),
        door="grpc",
        trace_parent=trace_parent,
        model="m",
        arrived_at_s=100.0,
        arrived_at_unix_s=UNIX_S,
        asked_at_s=100.1,
        admitted_at_s=100.2,
        num_prompt_tokens=7,
    )
    made.choices = [choice(index) for index in range(num_choices)]
    made.ended(Outcome("OK", "STOP"), 102.5)
    return made


def choice(index: int) -> ChoiceRecord:
    line = Timeline(arrived_at_s=100.0)
    line.called(100.3)
    line.called(100.5)
    line.sampled(InstanceId("p1"), PrefillTiming(queue_s=0.1, compute_s=0.3))
    line.handed_over(InstanceId("d0"), HandoffTiming(sink_tail_s=0.05, first_step_s=0.1))
    for at_s in (101.0, 101.2, 102.0):
        line.left(1, at_s)
    made = ChoiceRecord(index=index, timeline=line)
    for number, name, at_s in ((1, "p0", 100.3), (2, "p1", 100.5)):
        names = {Phase.PREFILL: InstanceId(name), Phase.DECODE: InstanceId("d0")}
        made.placed(
            Attempt(number=number, placed_at_s=at_s, instance_ids=names, reasons=("2 able",))
        )
        if number == 1:
            made.lost(PeerLost("p0 lost"), 100.45)
    made.ended(Outcome("OK", "STOP"), 102.0)
    return made


async def traced(*records: RequestRecord, sample_ratio: float = 1.0) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(ROUTER, exporter, sample_ratio=sample_ratio)
    for made in records:
        tracing.ended(made)
    await tracing.close()
    return list(exporter.get_finished_spans())


def named(spans: Sequence[ReadableSpan]) -> dict[str, list[tuple[float, float]]]:
    """When each begins and how long it takes; seconds after the arrival."""
    found = defaultdict(list)
    for span in spans:
        assert span.start_time is not None
        assert span.end_time is not None
        start_s = span.start_time / 1e9 - UNIX_S
        found[span.name].append(
            (round(start_s, 3), round((span.end_time - span.start_time) / 1e9, 3))
        )
    return dict(found)


async def test_the_parts_of_one_request() -> None:
    spans = await traced(record())
    assert named(spans) == {
        "baton.request": [(0.0, 2.5)],
        "baton.router_queue": [(0.0, 0.3)],
        "baton.reading": [(0.0, 0.1)],
        "baton.admission": [(0.1, 0.1)],
        "baton.placing": [(0.2, 0.1)],
        "baton.lost_attempts": [(0.3, 0.2)],
        "baton.prefill_queue": [(0.5, 0.1)],
        "baton.prefill_compute": [(0.6, 0.3)],
        "baton.network": [(0.9, 0.1), (1.15, 0.05)],
        "baton.exposed_transfer": [(1.0, 0.05)],
        "baton.first_step": [(1.05, 0.1)],
        "baton.decode": [(1.2, 0.8)],
        "baton.attempt": [(0.3, 0.15), (0.5, 1.5)],
    }
    [root] = [span for span in spans if span.parent is None]
    assert root.name == "baton.request"
    assert root.attributes is not None
    assert root.attributes["baton.request_id"] == "it"
    assert root.resource.attributes["service.instance.id"] == "router-0"
    for span in spans:
        assert span.context is not None
        assert root.context is not None
        assert span.context.trace_id == root.context.trace_id
        assert span is root or (span.parent and span.parent.span_id == root.context.span_id)


async def test_an_attempt_tells_where_it_ran_and_why_it_ended() -> None:
    first, second = [s for s in await traced(record()) if s.name == "baton.attempt"]
    assert first.attributes is not None
    assert first.attributes["baton.prefill_instance_id"] == "p0"
    assert first.attributes["baton.placement_reasons"] == ("2 able",)
    [event] = first.events
    assert event.attributes is not None
    assert event.attributes["baton.reason"] == "PEER_LOST"
    assert event.timestamp / 1e9 - UNIX_S == pytest.approx(0.45)
    assert not first.status.is_ok
    assert second.status.is_ok or second.status.is_unset
    assert not second.events


async def test_every_choice_is_in_the_trace() -> None:
    spans = await traced(record(num_choices=3))
    decodes = [span for span in spans if span.name == "baton.decode"]
    assert [span.attributes and span.attributes["baton.choice"] for span in decodes] == [0, 1, 2]


PARENTS = [
    # id                     header                                              taken
    ("a good one", TRACE_PARENT, True),
    ("none", "", False),
    ("rubbish", "hello", False),
    ("no trace", f"00-{'0' * 32}-{PARENT_ID}-01", False),
    ("a version to come", f"01-{TRACE_ID}-{PARENT_ID}-01-more", True),
    ("no version", f"ff-{TRACE_ID}-{PARENT_ID}-01", False),
    ("endless", TRACE_PARENT + "-" * 100_000, False),
    ("no ASCII", "ä" * 55, False),
]


@pytest.mark.parametrize(("header", "taken"), [c[1:] for c in PARENTS], ids=[c[0] for c in PARENTS])
async def test_whose_child_it_is(header: str, taken: bool) -> None:
    [root] = [s for s in await traced(record(header)) if s.name == "baton.request"]
    assert root.context is not None
    assert (f"{root.context.trace_id:032x}" == TRACE_ID) is taken
    assert (root.parent is not None) is taken


SAMPLED = [
    # ratio, header, traced
    (1.0, "", True),
    (0.0, "", False),
    (0.0, TRACE_PARENT, True),
    (1.0, f"00-{TRACE_ID}-{PARENT_ID}-00", False),
]


@pytest.mark.parametrize(("ratio", "header", "is_traced"), SAMPLED)
async def test_who_is_traced(ratio: float, header: str, is_traced: bool) -> None:
    assert bool(await traced(record(header), sample_ratio=ratio)) is is_traced


class Stuck(SpanExporter):
    """A collector that accepts connections and then says nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.free = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if not self.free.is_set():
            self._loop.call_soon_threadsafe(self.asked.set)
        self.free.wait(BOUND_S)
        return SpanExportResult.FAILURE


async def test_a_collector_that_hangs_holds_up_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tracing.CLOSE_TIMEOUT_S", 0.05)
    exporter = Stuck()
    tracing = Tracing(ROUTER, exporter)
    for _ in range(1000):  # far more than the queue takes
        tracing.ended(record())
    try:
        async with asyncio.timeout(BOUND_S):
            await exporter.asked.wait()
            await tracing.close()
    finally:
        exporter.free.set()
    assert "traces lost" in caplog.text


URLS = [
    ("http://localhost:4318", "http://localhost:4318/v1/traces"),
    ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
    ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
]


@pytest.mark.parametrize(("endpoint", "url"), URLS)
def test_where_traces_go(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[WireSpan]]]:
    """Its URL, and all spans that reach it."""
    got: list[WireSpan] = []

    async def take(request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        got.extend(
            span
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", got
    finally:
        await runner.cleanup()


async def test_a_router_sends_one_trace_a_request(stage: OpenStage) -> None:
    async with collector() as (url, got):
        on = await stage("pd", config=RouterConfig(otlp_endpoint=url))
        message = generation_pb2.GenerateRequest(
            text="w5 w6", request_id="it", stop=types_pb2.StopParams(max_tokens=4)
        )
        heard = await ask_raw(on, message, traceparent=TRACE_PARENT)
        assert heard.status == "OK"
        router = on.routers[0]
        router.stop.set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({router.task})
        assert {span.trace_id.hex() for span in got} == {TRACE_ID}
        [root] = [span for span in got if span.name == "baton.request"]
        assert root.parent_span_id.hex() == PARENT_ID
        others = [span for span in got if span is not root]
        assert {span.parent_span_id for span in others} == {root.span_id}
        names = {span.name for span in got}
        assert {"baton.router_queue", "baton.attempt"} <= names
        for span in others:
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano
