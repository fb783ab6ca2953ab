"""Where traces go: an OpenTelemetry collector, over OTLP/HTTP."""

from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider

from core.config import RouterConfig
from core.ids import RouterId
from router.tracing import SEND_TIMEOUT_S, Tracing

TRACES_PATH = "/v1/traces"
"""OTLP's own; an endpoint that has a path of its own is taken as it is."""


def otlp_tracing(router_id: RouterId, config: RouterConfig) -> Tracing:
    """To the configured endpoint; only where there is one."""
    exporter = OTLPSpanExporter(
        traces_url(config.otlp_endpoint),
        timeout=SEND_TIMEOUT_S,
        meter_provider=NoOpMeterProvider(),
    )
    return Tracing(router_id, exporter, sample_ratio=config.trace_sample_ratio)


def traces_url(endpoint: str) -> str:
    """http://host:4318 means its /v1/traces."""
    has_path = urlsplit(endpoint).path not in ("", "/")
    return endpoint if has_path else endpoint.rstrip("/") + TRACES_PATH
