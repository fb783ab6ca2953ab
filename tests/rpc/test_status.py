"""Errors cross the wire as statuses and come back as themselves; bugs say nothing of prompts."""

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from core import errors
from core.errors import BatonError, FieldViolation, InvalidRequest, Saturated
from core.limits import MAX_REQUEST_ID_CHARS
from kv_transfer.errors import LeaseEnded
from rpc.status import RemoteFault, error_from, our_error, status_boundary, to_status
from tests.rpc.support import Context, call, serving

PLAIN = [
    errors.UnknownModel,
    errors.UnknownRequest,
    errors.DuplicateRequest,
    errors.NoInstance,
    errors.Draining,
    errors.PeerLost,
    errors.DeadlinePassed,
    errors.Cancelled,
    errors.StaleFence,
    errors.StaleTerm,
    errors.WrongState,
    errors.Incompatible,
    errors.KvCorrupt,
    errors.AttemptsExhausted,
    errors.Unsupported,
    errors.ModelError,
    LeaseEnded,
]


async def crossed(error: BaseException, request_id: str = "") -> BatonError:
    """What a client gets of an error that a servicer method raised."""

    async def method(_: bytes, context: Context) -> bytes:
        async with status_boundary(context, request_id):
            raise error
        return b""

    async with serving(method) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await call(channel)
    return error_from(caught.value)


@pytest.mark.parametrize("cls", PLAIN, ids=lambda cls: cls.__name__)
async def test_typed_errors_come_back_as_themselves(cls: type[BatonError]) -> None:
    got = await crossed(cls("three instances, all full"))
    assert type(got) is cls
    assert str(got) == "three instances, all full"


def test_every_status_name_is_one_of_grpc() -> None:
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BatonError)
    ]
    assert {cls.status for cls in classes} <= set(grpc.StatusCode.__members__)


async def test_a_retry_hint_arrives() -> None:
    got = await crossed(Saturated("queue full: 1,024", retry_after_s=2.5))
    assert isinstance(got, Saturated)
    assert got.retry_after_s == 2.5


async def test_violations_arrive() -> None:
    violations = tuple(FieldViolation(f"f{i}", "must be 1 to 3, got 9") for i in range(3))
    got = await crossed(InvalidRequest(violations))
    assert isinstance(got, InvalidRequest)
    assert got.violations == violations


async def test_the_largest_error_still_fits_the_metadata() -> None:
    violations = tuple(FieldViolation("ü" * 900, "ü" * 900) for _ in range(900))
    got = await crossed(InvalidRequest(violations), "x" * MAX_REQUEST_ID_CHARS)
    assert isinstance(got, InvalidRequest)


async def test_an_error_may_come_in_a_group() -> None:
    got = await crossed(ExceptionGroup("tasks", [errors.StaleFence("late")]))
    assert type(got) is errors.StaleFence


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("canary prompt text"),
        errors.IllegalTransition("canary prompt text"),
        ExceptionGroup("canary", [errors.StaleFence("canary"), KeyError("canary")]),
    ],
    ids=["unknown", "our own bug", "a bug among others"],
)
async def test_bugs_get_an_id_and_say_no_more(
    bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        got = await crossed(bug)
    assert type(got) is RemoteFault
    error_id = str(got).removeprefix("internal error ")
    assert len(error_id) == 16
    assert error_id in caplog.text
    assert "test_status.py" in caplog.text  # the traceback
    assert "canary" not in str(got) + "".join(record.getMessage() for record in caplog.records)


async def test_a_cancelled_call_reaches_the_method_as_a_cancel() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def method(_: bytes, context: Context) -> bytes:
        async with status_boundary(context):
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.set()
                raise
        return b""

    async with serving(method) as channel:
        calling = asyncio.ensure_future(call(channel))
        await started.wait()
        calling.cancel()
        async with asyncio.timeout(10):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await calling


async def test_an_abort_further_in_is_left_alone() -> None:
    async def method(_: bytes, context: Context) -> bytes:
        async with status_boundary(context):
            await context.abort(grpc.StatusCode.DATA_LOSS, "inner")
        return b""

    async with serving(method) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await call(channel)
    assert type(error_from(caught.value)) is errors.KvCorrupt


CODES = [
    (grpc.StatusCode.UNAVAILABLE, errors.PeerLost),
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, Saturated),
    (grpc.StatusCode.INTERNAL, RemoteFault),
    (grpc.StatusCode.UNKNOWN, RemoteFault),
    (grpc.StatusCode.UNAUTHENTICATED, RemoteFault),
]


@pytest.mark.parametrize(("code", "cls"), CODES, ids=[c[0].name for c in CODES])
@pytest.mark.parametrize(
    "metadata", [(), (("grpc-status-details-bin", b"\xff\xff"),)], ids=["bare", "damaged details"]
)
def test_a_status_without_our_details_goes_by_its_code(
    code: grpc.StatusCode, cls: type[BatonError], metadata: tuple[tuple[str, bytes], ...]
) -> None:
    trailing = grpc.aio.Metadata(*metadata)
    got = error_from(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "text"))
    assert type(got) is cls


def failed(code: grpc.StatusCode, told: BatonError) -> grpc.aio.AioRpcError:
    """A call that ended with this code and with the details of that error."""
    details = ("grpc-status-details-bin", to_status(told).SerializeToString())
    trailing = grpc.aio.Metadata(details)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, str(told))


def test_a_reason_does_not_choose_a_class_of_another_status() -> None:
    error = failed(grpc.StatusCode.UNAVAILABLE, errors.StaleFence("late"))
    assert type(error_from(error)) is errors.PeerLost


def test_an_error_names_its_request() -> None:
    info = error_details_pb2.RequestInfo()
    assert [d.Unpack(info) for d in to_status(Saturated("full"), "it").details].count(True) == 1
    assert info.request_id == "it"
    assert not any(d.Is(info.DESCRIPTOR) for d in to_status(Saturated("full")).details)


def test_a_class_with_reasons_of_its_own_harms_nobody() -> None:
    class Odd(BatonError):
        def __init__(self, own: str) -> None:
            super().__init__(own)
            self.own = own

        @property
        def reason(self) -> str:
            return self.own

    error = failed(grpc.StatusCode.UNAVAILABLE, errors.NoInstance("p0"))
    assert type(error_from(error)) is errors.NoInstance
    assert Odd("ODD").reason == "ODD"


def test_other_clients_can_read_our_details() -> None:
    status = rpc_status.to_status(to_status(Saturated("full")))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert our_error(Saturated("full")).reason == "SATURATED"
