"""What a router counts for Prometheus: requests, latencies and their parts, tokens, bytes.

Labels are few and bounded: models that are served, pools and instances, outcomes, doors. What is
said or asked, who asks, and request ids are none of them.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from core.kv_layout import CARRIERS
from core.work import PROTOCOL_VERSION
from router.buckets import Buckets, Histograms
from router.record import ChoiceRecord, RequestRecord
from router.spans import FIRST_GAP, PARTS, TTFT, spans_of
from router.written import WrittenTokens

WHOLE_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0),
)
"""Of what users wait for: dense around the targets that papers and users set, 0.1 to 2 s."""
GAP_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0),
)
"""Dense where decode steps are: 5 ms on a large GPU, 100 ms on a CPU."""
PART_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)
ANSWER_BUCKETS_S = (
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    320.0,
    640.0,
)
LAG_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_MODEL = ("model",)


class Metrics:
    """One per router, with a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._written: dict[str, WrittenTokens] = {}
        self._series: dict[str, _Series] = {}
        ProcessCollector(registry=self._registry)
        self._build = Info("baton_build", "What runs here.", registry=self._registry)
        self._build.info(_build())
        self._registry.register(_WrittenCollector(self._written))
        self._requests = self._counter(
            "baton_requests_total",
            "Requests that ended: OK and why the answer did, or the error's status and reason.",
            ("model", "door", "status", "reason"),
        )
        self._attempts = self._counter("baton_attempts_total", "Placements of choices.", _MODEL)
        self._losses = self._counter(
            "baton_replacements_total",
            "Times that a choice had to be placed anew, by what went wrong.",
            ("model", "reason"),
        )
        self._prompt_tokens = self._counter(
            "baton_prompt_tokens_total", "Prompt tokens of admitted requests.", _MODEL
        )
        self._hit_tokens = self._counter(
            "baton_prefix_hit_tokens_total",
            "Prompt tokens of choices whose KV was in a prefix cache and was not computed.",
            ("model", "source"),
        )
        self._kv_bytes = self._counter(
            "baton_handoff_kv_bytes_total",
            "KV payload that handoffs moved, by what carried it.",
            ("model", "carrier"),
        )
        self._ttft = self._histogram(
            "baton_ttft_seconds", "Arrival to the first token.", WHOLE_BUCKETS_S
        )
        self._first_gap = self._histogram(
            "baton_first_gap_seconds", "First token to the second.", WHOLE_BUCKETS_S
        )
        self._tpot = self._histogram(
            "baton_tpot_seconds", "Mean time per token after the first.", GAP_BUCKETS_S
        )
        self._e2e = self._histogram(
            "baton_e2e_seconds",
            "Arrival to the last token of answers that ended well.",
            ANSWER_BUCKETS_S,
        )
        self._queue = self._histogram(
            "baton_queue_seconds", "Arrival to the first call of a prefill.", WHOLE_BUCKETS_S
        )
        self._parts = {
            TTFT: self._parts_histogram("baton_ttft_part_seconds", "What the TTFT is the sum of."),
            FIRST_GAP: self._parts_histogram(
                "baton_first_gap_part_seconds", "What the first gap is the sum of."
            ),
        }
        self._itl = self._histogram(
            "baton_itl_seconds",
            "Gap before each output token but an answer's first; tokens that leave together"
            " share one.",
            GAP_BUCKETS_S,
        )
        lag = self._histogram(
            "baton_event_loop_lag_seconds",
            "How late the router's event loop wakes up.",
            LAG_BUCKETS_S,
            labels=(),
        )
        self._lag = lag.labels()

    def add(self, collector: Collector) -> None:
        """Asked at every scrape."""
        self._registry.register(collector)

    def written(self, model: str) -> WrittenTokens:
        """Where the answers of one model are counted as they leave."""
        if (written := self._written.get(model)) is None:
            written = self._written[model] = WrittenTokens(self._itl.labels(model))
        return written

    def lagged(self, lag_s: float) -> None:
        """The event loop was so late."""
        self._lag.observe(lag_s)

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        outcome, model = record.outcome, record.model
        self._requests.labels(model, record.door, outcome.status, outcome.reason).inc()
        if not record.choices:
            return
        if (series := self._series.get(model)) is None:
            series = self._series[model] = self._series_of(model)
        series.prompt_tokens.inc(record.num_prompt_tokens)
        for choice in record.choices:
            self._count(series, model, choice)
            _time(series, record, choice)

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """All of it as text, in the format that the header asks for, and its content type."""
        encode, content_type = choose_encoder(accept or "")
        return encode(_Plain(self._registry)), content_type

    def _count(self, series: "_Series", model: str, choice: ChoiceRecord) -> None:
        series.attempts.inc(choice.num_attempts)
        for reason in choice.lost_reasons:
            self._losses.labels(model, reason).inc()
        for carrier, num_bytes in choice.num_kv_bytes.items():
            # It is a peer's word: whatever else it says, the series stay as many.
            known = carrier if carrier in CARRIERS else "other"
            self._kv_bytes.labels(model, known).inc(num_bytes)
        told = choice.timeline.prefill
        series.hit_tokens.inc(told.num_hit_tokens)
        series.fetched_tokens.inc(told.num_fetched_tokens)

    def _series_of(self, model: str) -> "_Series":
        return _Series(
            attempts=self._attempts.labels(model),
            prompt_tokens=self._prompt_tokens.labels(model),
            hit_tokens=self._hit_tokens.labels(model, "local"),
            fetched_tokens=self._hit_tokens.labels(model, "fetched"),
            ttft=self._ttft.labels(model),
            first_gap=self._first_gap.labels(model),
            tpot=self._tpot.labels(model),
            e2e=self._e2e.labels(model),
            queue=self._queue.labels(model),
            parts={
                (whole, part): self._parts[whole].labels(model, part)
                for whole, parts in PARTS.items()
                for part in parts
            },
        )

    def _counter(self, name: str, text: str, labels: Iterable[str]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = _MODEL
    ) -> Histograms:
        made = Histograms(name, text, labels, bounds=bounds)
        self._registry.register(made)
        return made

    def _parts_histogram(self, name: str, text: str) -> Histograms:
        return self._histogram(name, text, PART_BUCKETS_S, ("model", "part"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """Of one model, looked up once: finding a series costs more than counting in it."""

    attempts: Counter
    prompt_tokens: Counter
    hit_tokens: Counter
    fetched_tokens: Counter
    ttft: Buckets
    first_gap: Buckets
    tpot: Buckets
    e2e: Buckets
    queue: Buckets
    parts: Mapping[tuple[str, str], Buckets]


def _time(series: _Series, record: RequestRecord, choice: ChoiceRecord) -> None:
    timeline = choice.timeline
    if timeline.first_token_at_s is None:
        return
    timing = timeline.timing()
    series.ttft.observe(timing.ttft_s)
    series.queue.observe(timing.router_queue_s)
    if timeline.second_token_at_s is not None:
        series.first_gap.observe(timing.first_gap_s)
    for span in spans_of(record, timeline, timeline.last_token_at_s):
        if (part := series.parts.get((span.part_of, span.name))) is not None:
            part.observe(span.duration_s)
    if not choice.outcome.is_error:
        series.e2e.observe(timing.e2e_s)
        if timeline.num_tokens > 1:
            series.tpot.observe(timing.tpot_s)


class _WrittenCollector(Collector):
    """The one count that is too often changed to be kept under a lock."""

    def __init__(self, written: dict[str, WrittenTokens]) -> None:
        self._written = written

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "baton_output_tokens", "Output tokens given to clients.", labels=_MODEL
        )
        for model, written in self._written.items():
            tokens.add_metric((model,), written.num_tokens)
        yield tokens


class _Plain(Collector):
    """A registry without the moments at which its series began, each of which is a series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def _build() -> dict[str, str]:
    try:
        own = version("baton")
    except PackageNotFoundError:  # run from its sources
        own = "unknown"
    return {
        "version": own,
        "protocol": str(PROTOCOL_VERSION),
        "python": platform.python_version(),
    }
