"""Around every HTTP request: an id from its first moment on, and typed errors at its end."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import BatonError, Cancelled
from core.validation import request_id_of as resolve_id
from router.http.errors import (
    REQUEST_ID_HEADER,
    MethodNotAllowed,
    NotFound,
    body_of,
    headers_of,
    status_of,
)
from rpc.status import our_error


class Edge:
    """The outermost application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id = _id_of(scope)
        scope["state"] = scope.get("state", {}) | {"request_id": request_id}
        # Makes the routes raise their own errors, for us to shape.
        scope["app"] = self
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as exception:  # noqa: BLE001 - the edge: what passes here would leak
            error = _error_of(exception)
            if not has_begun and not isinstance(error, Cancelled):
                await _reply(error, request_id, exception)(scope, receive, send_with_id)


def request_id_of(request: Request) -> str:
    """As the edge gave it."""
    return str(request.state.request_id)


def _id_of(scope: Scope) -> str:
    """The client's own, where it can be one: proxies put all kinds of things there."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER.encode():
            return resolve_id(value.decode("latin-1"))
    return resolve_id("")


def _error_of(exception: Exception) -> BatonError:
    if not isinstance(exception, HTTPException):
        return our_error(exception)
    if exception.status_code == 405:
        allowed = (exception.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"not by this method; allowed: {allowed}")
    return NotFound("no such path; /openapi.json lists what there is")


def _reply(error: BatonError, request_id: str, cause: Exception) -> JSONResponse:
    headers: dict[str, Any] = headers_of(error, request_id)
    if isinstance(cause, HTTPException):
        headers |= dict(cause.headers or {})
    return JSONResponse(body_of(error, request_id), status_of(error), headers)
