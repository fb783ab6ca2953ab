"""Errors as HTTP answers: the status that each deserves, in the shape OpenAI's clients read."""

import math
import re
from typing import Any

from core.errors import BatonError, FieldViolation, InvalidRequest, QuotaExceeded, Unsupported
from rpc.status import MAX_MESSAGE_CHARS, MAX_RETRY_AFTER_S

REQUEST_ID_HEADER = "x-request-id"

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""gRPC status name → HTTP status; all others are 500."""

_NAMES = {
    "num_choices": "n",
    "text": "prompt",
    "token_ids.ids": "prompt",
    "chat.messages": "messages",
    "stop_strings": "stop",
    "num_logprobs": "logprobs",
    "grammar": "response_format",
}
"""The contract's names → OpenAI's."""
_FIELD = re.compile(r"(?:sampling\.|stop\.)?([a-z_.]+?)(\[.*)?$", re.DOTALL)


class TooLarge(BatonError):
    """The body is over the limit."""

    status = "RESOURCE_EXHAUSTED"


class NotFound(BatonError):
    """No such path, or none for this method."""

    status = "NOT_FOUND"


class MethodNotAllowed(BatonError):
    """The path knows other methods."""

    status = "UNIMPLEMENTED"


# Unsupported: OpenAI's clients repeat what fails with 501, as if it could go away.
_STATUS_OF_TYPE = {TooLarge: 413, MethodNotAllowed: 405, Unsupported: 400}


def status_of(error: BatonError) -> int:
    """The HTTP status."""
    return _STATUS_OF_TYPE.get(type(error), _STATUS.get(error.status, 500))


def body_of(error: BatonError, request_id: str) -> dict[str, Any]:
    """What the client reads; `request_id` leads to more of it: `baton explain`."""
    return {
        "error": {
            "message": _message(error)[:MAX_MESSAGE_CHARS],
            "type": _type(error),
            "param": _param(error),
            "code": error.reason.lower(),
            "request_id": request_id,
        }
    }


def headers_of(error: BatonError, request_id: str) -> dict[str, str]:
    """The id, and when to try again."""
    headers = {REQUEST_ID_HEADER: request_id}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        retry_after_s = min(retry_after_s, MAX_RETRY_AFTER_S)
        headers["retry-after"] = str(math.ceil(retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
    elif error.retryable:
        headers["retry-after"] = "1"
    return headers


def field_name(field: str) -> str:
    """What OpenAI's API calls a field of the contract."""
    found = _FIELD.match(field)
    if found is None:
        return field
    name, rest = found[1], found[2] or ""
    return _NAMES.get(name, name) + rest


def _message(error: BatonError) -> str:
    if not isinstance(error, InvalidRequest):
        return str(error)
    return "; ".join(f"{field_name(v.field)}: {v.description}" for v in error.violations)


def _param(error: BatonError) -> str | None:
    return field_name(error.violations[0].field) if isinstance(error, InvalidRequest) else None


def _type(error: BatonError) -> str:
    if isinstance(error, QuotaExceeded):
        return "insufficient_quota"
    if status_of(error) == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status_of(error) < 500 else "server_error"


def invalid(field: str, description: str) -> InvalidRequest:
    """One field breaks its bounds."""
    return InvalidRequest((FieldViolation(field, description),))
