"""Asks a router over gRPC as a client without our own would: every header and every error seen."""

from dataclasses import dataclass

import aiohttp
import grpc.aio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, generation_pb2, generation_pb2_grpc
from rpc.status import DETAILS_KEY, REQUEST_ID_KEY
from tests.router.conftest import Stage
from tests.router.script import BOUND_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """All that came back of one call."""

    responses: list[generation_pb2.GenerateResponse]
    status: str
    message: str
    header_id: str
    """x-request-id before the answer; empty without one."""
    trailer_id: str
    """The same behind it."""
    details_id: str
    """google.rpc.RequestInfo of the error."""


async def ask_raw(on: Stage, message: generation_pb2.GenerateRequest, **headers: str) -> Heard:
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        call = stub.Generate(message, timeout=BOUND_S, metadata=tuple(headers.items()))
        responses = []
        try:
            async for response in call:
                responses.append(response)
        except grpc.aio.AioRpcError:
            pass  # told below
        trailers = dict(await call.trailing_metadata() or ())
        return Heard(
            responses=responses,
            status=(await call.code()).name,
            message=await call.details() or "",
            header_id=str(dict(await call.initial_metadata() or ()).get(REQUEST_ID_KEY, "")),
            trailer_id=str(trailers.get(REQUEST_ID_KEY, "")),
            details_id=_details_id(trailers.get(DETAILS_KEY)),
        )


def _details_id(data: object) -> str:
    if not isinstance(data, bytes):
        return ""
    info = error_details_pb2.RequestInfo()
    for detail in status_pb2.Status.FromString(data).details:
        detail.Unpack(info)
    return str(info.request_id)


async def scrape(on: Stage) -> str:
    """As Prometheus does."""
    async with aiohttp.ClientSession() as session:
        url = f"http://{on.routers[0].http_address}/metrics"
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=BOUND_S)) as reply:
            assert reply.status == 200
            return await reply.text()


async def explain(on: Stage, request_id: str) -> cluster_pb2.ExplainReply:
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        message = cluster_pb2.ExplainRequest(request_id=request_id)
        return await stub.Explain(message, timeout=BOUND_S)
