"""Every answer and every error names its request, whoever named it and whatever went wrong."""

import re
from typing import Any

import grpc
import pytest

from core.config import RouterConfig
from core.limits import MAX_REQUEST_ID_CHARS
from core.validation import request_id_of
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import generation_pb2, types_pb2
from tests.router.asking import Heard, ask_raw
from tests.router.conftest import OpenStage
from tests.router.script import BOUND_S

FRESH = re.compile(r"[0-9a-f]{32}")


def message(text: str = "w5 w6", **fields: object) -> generation_pb2.GenerateRequest:
    stop = types_pb2.StopParams(max_tokens=3)
    return generation_pb2.GenerateRequest(text=text, stop=stop, **fields)  # type: ignore[arg-type]


CASES = [
    # id            given              kept
    ("a good one", "chat-7.a:b_c", True),
    ("the longest", "x" * MAX_REQUEST_ID_CHARS, True),
    ("none", "", False),
    ("too long", "x" * (MAX_REQUEST_ID_CHARS + 1), False),
    ("a path", "../x", False),
    ("a line break", "a\nb", False),
    ("no ASCII", "ä", False),
]


@pytest.mark.parametrize(("given", "kept"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_id_of_a_request(given: str, kept: bool) -> None:
    assert (request_id_of(given) == given) is kept
    if not kept:
        assert FRESH.fullmatch(request_id_of(given))
        assert request_id_of(given) != request_id_of(given)


async def test_an_answer_begins_with_the_id(stage: OpenStage) -> None:
    on = await stage("pd")
    named = await ask_raw(on, message(request_id="mine"))
    assert (named.status, named.header_id) == ("OK", "mine")
    nameless = await ask_raw(on, message())
    assert FRESH.fullmatch(nameless.header_id)
    assert nameless.responses[0].accepted.request_id == nameless.header_id


async def test_a_refusal_names_the_request(stage: OpenStage) -> None:
    on = await stage("pd")
    heard = await ask_raw(on, message("", request_id="mine"))
    assert heard.status == "INVALID_ARGUMENT"
    assert (heard.details_id, heard.trailer_id) == ("mine", "mine")


async def test_an_id_that_cannot_be_one_is_replaced_in_its_error(stage: OpenStage) -> None:
    on = await stage("pd")
    heard = await ask_raw(on, message(request_id="../x"))
    assert heard.status == "INVALID_ARGUMENT"
    assert FRESH.fullmatch(heard.trailer_id)
    assert heard.details_id == heard.trailer_id


async def test_a_failure_in_the_middle_names_the_request(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_attempts=1))
    on["d0"].script.output_errors = {1: "UNAVAILABLE"}
    heard = await ask_raw(on, message(request_id="mine"))
    assert heard.status == "UNAVAILABLE"
    assert (heard.header_id, heard.trailer_id, heard.details_id) == ("mine", "mine", "mine")


async def test_bytes_that_are_no_message_get_an_id(stage: OpenStage) -> None:
    on = await stage("pd")
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        method: Any = channel.unary_stream("/baton.v1.Generation/Generate")
        call = method(b"\xff", timeout=BOUND_S)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        trailers = dict(await call.trailing_metadata())
    assert FRESH.fullmatch(str(trailers["x-request-id"]))


def is_named(heard: Heard) -> bool:
    return bool(heard.trailer_id) and heard.trailer_id == heard.details_id


async def test_a_resume_needs_an_id_of_the_client(stage: OpenStage) -> None:
    """The one that the door gave it does not count."""
    on = await stage("pd")
    heard = await ask_raw(on, message(resume={"epoch": 1}))
    assert heard.status == "INVALID_ARGUMENT"
    assert "request_id" in heard.message
    assert is_named(heard)
