"""The KServe door over scripted instances."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from router.kserve.tensors import Output, add_output, read_tensors
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import inference_pb2 as pb
from rpc.pb import inference_pb2_grpc
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected
from tests.router.script import BOUND_S, Gate

PROMPT = [5, 6, 7]
OPTIONS: dict[str, Any] = {"max_tokens": 6, "seed": 3}
WANT = expected(PROMPT, 6, seed=3)


@asynccontextmanager
async def door(on: Stage) -> AsyncIterator["inference_pb2_grpc.GRPCInferenceServiceAsyncStub"]:
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(**options: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="fake", id="mine")
    for name, value in (OPTIONS | options).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    tensor = message.inputs.add(name="input_ids", datatype="INT64", shape=[3])
    tensor.contents.int64_contents.extend(PROMPT)
    return message


def texts(reply: pb.ModelInferResponse) -> list[str]:
    [found] = [tensor for tensor in reply.outputs if tensor.name == "text_output"]
    return [text.decode() for text in found.contents.bytes_contents]


def ids(reply: pb.ModelInferResponse) -> list[int]:
    [found] = [tensor for tensor in reply.outputs if tensor.name == "output_ids"]
    return list(found.contents.int64_contents)


async def test_looks(stage: OpenStage) -> None:
    async with door(await stage("pd")) as stub:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="fake"))).ready
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="other"))).ready
        assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "baton"
        described = await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
        assert {tensor.name for tensor in described.inputs} >= {"text_input", "input_ids"}
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ModelMetadata(pb.ModelMetadataRequest(name="other"))
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_whole(stage: OpenStage) -> None:
    async with door(await stage("pd")) as stub:
        call = stub.ModelInfer(request())
        reply = await call
        metadata = dict(await call.initial_metadata())
    assert metadata["x-request-id"] == reply.parameters["request_id"].string_param
    assert ids(reply) == WANT
    assert texts(reply) == [" ".join(f"w{i}" for i in WANT)]
    assert reply.id == "mine"
    assert reply.parameters["completion_tokens"].int64_param == 6


async def test_many_prompts_and_choices(stage: OpenStage) -> None:
    message = request(n=2)
    del message.inputs[:]
    tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"w5 w6", b"w7"])
    message.outputs.add(name="text_output")
    async with door(await stage("pdd")) as stub:
        reply = await stub.ModelInfer(message)
    prompts = ([5, 6], [7])
    want = [expected(p, 6, seed=3, child=c) for p in prompts for c in range(2)]
    assert texts(reply) == [" ".join(f"w{i}" for i in tokens) for tokens in want]
    assert [tensor.name for tensor in reply.outputs] == ["text_output"]


async def test_raw_elements_and_json_options(stage: OpenStage) -> None:
    message = pb.ModelInferRequest(model_name="fake")
    options = b'{"max_tokens": 6, "seed": 3}'
    for name, datatype, shape, raw in (
        ("input_ids", "INT32", [1, 3], struct.pack("<3i", *PROMPT)),
        ("sampling_parameters", "BYTES", [1], struct.pack("<I", len(options)) + options),
        ("temperature", "FP32", [1], struct.pack("<f", 0.0)),
    ):
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    async with door(await stage("pd")) as stub:
        reply = await stub.ModelInfer(message)
    [index] = [i for i, tensor in enumerate(reply.outputs) if tensor.name == "output_ids"]
    assert list(struct.unpack("<6q", reply.raw_output_contents[index])) == WANT


async def test_stream_of_several(stage: OpenStage) -> None:
    wrong = request(n=99)
    wrong.id = "wrong"
    async with door(await stage("pd")) as stub:
        replies = [reply async for reply in stub.ModelStreamInfer(iter([request(), wrong]))]
    [failed] = [reply for reply in replies if reply.error_message]
    assert failed.infer_response.id == "wrong"
    assert failed.error_message.startswith("INVALID_ARGUMENT: ")
    pieces = [reply.infer_response for reply in replies if not reply.error_message]
    assert [i for piece in pieces for i in ids(piece)] == WANT
    finals = [piece.parameters["triton_final_response"].bool_param for piece in pieces]
    assert finals == [False] * (len(pieces) - 1) + [True]


async def test_cancel(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["d0"].script.token_gates[3] = Gate()
    async with door(on) as stub, asyncio.timeout(BOUND_S):
        call = stub.ModelInfer(request())
        waiting = asyncio.ensure_future(_result(call))
        await gate.wait_reached()
        call.cancel()
        await waiting
    await on["d0"].until(lambda instance: bool(instance.stops))
    gate.open.set()


async def _result(call: Awaitable[object]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call


def tensor_of(datatype: str, shape: list[int], raw: bytes) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(raw_input_contents=[raw])
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    return message


BAD = [
    ("no such type", tensor_of("FP16", [1], b"ab"), "datatype"),
    ("half an element", tensor_of("INT32", [1], b"abc"), "whole number"),
    ("too few", tensor_of("INT32", [2], b"abcd"), "1 elements"),
    ("cut off", tensor_of("BYTES", [1], b"\xff\xff\xff\xffab"), "cut off"),
    ("no length", tensor_of("BYTES", [1], b"ab"), "cut off"),
    ("three dimensions", tensor_of("BOOL", [1, 1, 1], b"a"), "shape"),
    ("below 0", tensor_of("BOOL", [-1], b"a"), "shape"),
    ("two for one", pb.ModelInferRequest(raw_input_contents=[b"", b""]), "2 for 0"),
]


@pytest.mark.parametrize(("message", "why"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
async def test_bad_tensors(stage: OpenStage, message: pb.ModelInferRequest, why: str) -> None:
    message.model_name = "fake"
    async with door(await stage("pd")) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ModelInfer(message)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in (failure.value.details() or "")


@pytest.mark.parametrize("as_raw", [True, False])
def test_what_is_written_is_read(as_raw: bool) -> None:
    written = pb.ModelInferResponse()
    outputs = [
        Output("a", "BYTES", [b"", b"abc"]),
        Output("b", "INT64", [-1, 2**40]),
        Output("c", "BOOL", [True, False]),
        Output("d", "FP64", [0.5]),
    ]
    for output in outputs:
        add_output(written, output, as_raw=as_raw)
    read = pb.ModelInferRequest(raw_input_contents=written.raw_output_contents)
    for tensor in written.outputs:
        read.inputs.add(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tensor.shape,
            contents=tensor.contents,
        )
    assert [tensor.values for tensor in read_tensors(read)] == [o.values for o in outputs]
