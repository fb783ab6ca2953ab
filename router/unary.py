"""Unary methods of the router: messages it cannot read get INVALID_ARGUMENT, not INTERNAL."""

from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from rpc.codec import Reader, Undecodable, tolerant

M = TypeVar("M", bound=Message)


def unary(method: Any, request: type[Message]) -> Any:  # noqa: ANN401 - as grpc has it
    """A handler for `method`, which is given a message or what was no message."""
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=tolerant(Reader(request)),
        response_serializer=lambda reply: reply.SerializeToString(),
    )


def readable(message: M | Undecodable) -> M:
    """The message, or the error that it could not be read as."""
    if isinstance(message, Undecodable):
        raise message.error
    return message
