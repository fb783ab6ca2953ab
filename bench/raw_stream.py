"""One answer as the bytes of its messages: reading must cost little where routers are measured."""

from collections.abc import Sequence
from typing import Any

import grpc.aio

from rpc.pb import generation_pb2, types_pb2

METHOD = "/baton.v1.Generation/Generate"
TIMEOUT_S = 300.0

RawCall = grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, bytes]


def ask_raw(channel: grpc.aio.Channel, token_ids: Sequence[int], max_tokens: int) -> RawCall:
    """Begin an answer of exactly so many tokens."""
    request = generation_pb2.GenerateRequest(
        stop=types_pb2.StopParams(max_tokens=max_tokens, ignore_eos=True), num_choices=1
    )
    request.token_ids.ids.extend(token_ids)
    method: Any = channel.unary_stream(
        METHOD,
        request_serializer=generation_pb2.GenerateRequest.SerializeToString,
        response_deserializer=None,
    )
    call: RawCall = method(request, timeout=TIMEOUT_S)
    return call
