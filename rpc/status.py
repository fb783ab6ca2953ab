"""Errors to gRPC statuses, and statuses to errors: the one place of each direction."""

import asyncio
import logging
import secrets
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from core.errors import (
    BatonError,
    Cancelled,
    DeadlinePassed,
    DuplicateRequest,
    FieldViolation,
    InvalidRequest,
    KvCorrupt,
    PeerLost,
    QuotaExceeded,
    Saturated,
    StaleFence,
    UnknownRequest,
    Unsupported,
    WrongState,
)

logger = logging.getLogger(__name__)

DOMAIN = "baton"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
"""Metadata: before the first event of an answer, and behind every error of one."""
MAX_MESSAGE_CHARS = 512
MAX_DETAILS_BYTES = 3 * 1024
"""With the message twice and base64 still below the 8 KiB that metadata may have."""
MAX_RETRY_AFTER_S = 3600.0


class RemoteFault(BatonError):
    """The peer failed in a way we have no type for; a bug, here or there."""


_BY_CODE: dict[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.UNAVAILABLE: PeerLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassed,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.NOT_FOUND: UnknownRequest,
    grpc.StatusCode.ALREADY_EXISTS: DuplicateRequest,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ABORTED: StaleFence,
    grpc.StatusCode.DATA_LOSS: KvCorrupt,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}


@asynccontextmanager
async def status_boundary(
    context: grpc.aio.ServicerContext[Any, Any], request_id: str = ""
) -> AsyncIterator[None]:
    """End the call with the status that an error deserves: around every servicer method's body.

    The error names the request, where the call is one.
    A cancelled call (client gone, server stopping) has nobody to tell: CancelledError passes.
    """
    try:
        yield
    except grpc.aio.AbortError:
        raise  # decided already, further in
    except Exception as error:  # noqa: BLE001 - the edge: what passes here would leak or be lost
        if is_gone(error):
            raise asyncio.CancelledError from None
        await abort(context, our_error(error, request_id), request_id)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: BatonError, request_id: str = ""
) -> NoReturn:
    """End the call with `error`."""
    status = to_status(error, request_id)
    metadata: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
    if request_id:
        metadata += ((REQUEST_ID_KEY, request_id),)
    try:
        await context.abort(grpc.StatusCode[error.status], status.message, metadata)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None  # the call went away first
    raise AssertionError("abort raises")


def is_gone(error: BaseException) -> bool:
    """Whether the call went away under a write: as if cancelled a moment earlier."""
    return all(isinstance(leaf, grpc.aio.InternalError) for leaf in leaves(error))


def our_error(error: Exception, request_id: str = "") -> BatonError:
    """The typed error that an exception is or wraps; anything else is a bug and gets an id."""
    found = list(leaves(error))
    bugs = [leaf for leaf in found if not isinstance(leaf, BatonError)]
    bugs += [leaf for leaf in found if isinstance(leaf, BatonError) and leaf.status == "INTERNAL"]
    if not bugs and isinstance(found[0], BatonError):
        return found[0]
    culprit = bugs[0]
    error_id = secrets.token_hex(8)
    # Frames and the type only: the text of an exception may quote a prompt.
    places = [error] if culprit is error else [error, culprit]
    frames = "".join(line for e in places for line in traceback.format_tb(e.__traceback__))
    name = type(culprit).__qualname__
    logger.error("bug error_id=%s request_id=%s type=%s\n%s", error_id, request_id, name, frames)
    return BatonError(f"internal error {error_id}")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep; of any other, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def to_status(error: BatonError, request_id: str = "") -> status_pb2.Status:
    """The status message with its google.rpc details, cut to what metadata may hold."""
    status = status_pb2.Status(
        code=grpc.StatusCode[error.status].value[0], message=str(error)[:MAX_MESSAGE_CHARS]
    )
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if request_id:
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(min(retry_after_s, MAX_RETRY_AFTER_S) * 1e9))
        status.details.add().Pack(retry)
    if isinstance(error, QuotaExceeded):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject="tenant", description=str(error)[:MAX_MESSAGE_CHARS])
        status.details.add().Pack(quota)
    if isinstance(error, InvalidRequest):
        status.details.add().Pack(_bad_request(error))
    return status


def _bad_request(error: InvalidRequest) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in error.violations:
        bad.field_violations.add(
            field=violation.field[:MAX_MESSAGE_CHARS],
            description=violation.description[:MAX_MESSAGE_CHARS],
        )
        if bad.ByteSize() > MAX_DETAILS_BYTES:
            del bad.field_violations[-1]
            break
    return bad


def error_from(error: grpc.RpcError) -> BatonError:
    """The typed error that a failed call reports: by its reason where we know it, else by code.

    A call cancelled on this side raises asyncio.CancelledError, which is no RpcError.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return RemoteFault("the call failed without a status")
    message = error.details() or error.code().name
    details = _details_of(error)
    if details is None:
        return _by_code(error.code(), message)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    for detail in details.details:
        for known in (info, retry, bad):
            if detail.Is(known.DESCRIPTOR):
                _unpack(detail.value, known)
    return _rebuild(info, retry, bad, _by_code(error.code(), message))


def _details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            return status if _unpack(value, status) else None
    return None


def _unpack(data: bytes, into: Any) -> bool:  # noqa: ANN401 - any generated message
    try:
        into.ParseFromString(data)
    except DecodeError:
        return False
    return True


def _by_code(code: grpc.StatusCode, message: str) -> BatonError:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest((FieldViolation("request", message),))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Saturated(message)
    return _BY_CODE.get(code, RemoteFault)(message)


def _rebuild(
    info: error_details_pb2.ErrorInfo,
    retry: error_details_pb2.RetryInfo,
    bad: error_details_pb2.BadRequest,
    by_code: BatonError,
) -> BatonError:
    if isinstance(by_code, InvalidRequest) and bad.field_violations:
        return InvalidRequest(
            tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        )
    # A class whose objects have reasons of their own cannot be told by its name.
    plain = (cls for cls in _subclasses(BatonError) if cls.reason is BatonError.reason)
    known = {cls.__new__(cls).reason: cls for cls in plain}
    found = known.get(info.reason) if info.domain == DOMAIN else None
    # The peer's status must be the class's own: a reason alone does not choose our reaction.
    if found is None or found.status != by_code.status:
        return by_code
    if issubclass(found, Saturated) and found.__init__ is Saturated.__init__:
        return found(str(by_code), retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9)
    # Classes with arguments of their own cannot be rebuilt from a message.
    return found(str(by_code)) if found.__init__ is BatonError.__init__ else by_code


def _subclasses(cls: type[BatonError]) -> Iterator[type[BatonError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
