"""Reads a request's body: bounded, and typed without ever repeating what was in it."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from core.errors import Cancelled, DeadlinePassed, FieldViolation, InvalidRequest
from core.limits import MAX_CLIENT_MESSAGE_BYTES
from core.validation import MAX_VIOLATIONS
from router.http.errors import TooLarge

B = TypeVar("B", bound=BaseModel)

READ_TIMEOUT_S = 60.0
"""For a body of the largest size at 70 KB/s."""
MAX_SHOWN_CHARS = 64
"""Of a field's name: a client's own words where a map has a wrong value."""


async def read_fields(request: Request, cls: type[B]) -> B:
    """The body as `cls`. Raises InvalidRequest, TooLarge, DeadlinePassed or Cancelled."""
    data = await _read(request)
    try:
        return cls.model_validate_json(data)
    except ValidationError as error:
        raise InvalidRequest(violations_of(error)) from None


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > MAX_CLIENT_MESSAGE_BYTES:
        raise _too_large(f"{declared[:20]} bytes")
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await _collect(request)
    except TimeoutError:
        raise DeadlinePassed(f"the body did not arrive in {READ_TIMEOUT_S:g} s") from None


async def _collect(request: Request) -> bytes:
    data = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left while it sent its request")
        data += message.get("body", b"")
        if len(data) > MAX_CLIENT_MESSAGE_BYTES:
            raise _too_large(f"more than {MAX_CLIENT_MESSAGE_BYTES} bytes")
        more = message.get("more_body", False)
    return bytes(data)


def _too_large(what: str) -> TooLarge:
    return TooLarge(f"the body has {what}, limit {MAX_CLIENT_MESSAGE_BYTES}")


def violations_of(error: ValidationError) -> tuple[FieldViolation, ...]:
    """Where and what is wrong; a union names each of its kinds, of which the first says enough."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        location = [str(part) for part in detail["loc"]]
        found.setdefault(".".join(location)[:MAX_SHOWN_CHARS] or "body", detail["msg"])
    return tuple(FieldViolation(*item) for item in list(found.items())[:MAX_VIOLATIONS])
