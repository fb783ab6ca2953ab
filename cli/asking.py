"""What commands ask a router's Cluster service, and how its replies look to programs.

Imported only by commands that are called: the base installation has no gRPC.
"""

import json
from typing import Any

import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2_grpc
from rpc.status import error_from

TIMEOUT_S = 5.0
"""A router answers from memory; instances that are asked for their books have a second."""


async def ask_cluster(router: str, method: str, request: Message) -> Any:  # noqa: ANN401 - by method
    """The reply of one call. Raises BatonError."""
    async with dial(router, plane=Plane.CLIENT) as channel:
        call = getattr(cluster_pb2_grpc.ClusterStub(channel), method)
        try:
            return await call(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None


def as_dict(message: Message) -> dict[str, Any]:
    """Every field, those with their default too."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def as_json(reply: Message) -> str:
    """The same, for people to read."""
    return json.dumps(as_dict(reply), indent=2)
