"""What a request's headers say about who asks, and how long it may take."""

from starlette.requests import Request

from core.validation import RequestDraft
from router.http.edge import request_id_of
from router.http.errors import invalid

TENANT_HEADER = "x-baton-tenant"
TIMEOUT_HEADER = "x-baton-timeout-s"


def origin_of(request: Request) -> RequestDraft:
    """A draft of nothing but what the headers tell. Raises InvalidRequest."""
    return RequestDraft(
        prompt=None,
        request_id=request_id_of(request),
        tenant=request.headers.get(TENANT_HEADER, ""),
        timeout_s=_timeout_s(request.headers.get(TIMEOUT_HEADER)),
        trace_parent=request.headers.get("traceparent", ""),
    )


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise invalid(TIMEOUT_HEADER, "must be a number of seconds") from None
