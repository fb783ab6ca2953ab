"""Bytes to messages without trusting them: what cannot be read becomes a typed error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from core.errors import FieldViolation, InvalidRequest

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands in for a message that could not be read.

    gRPC answers INTERNAL, or nothing at all, when a deserializer raises; so ours return this.
    """

    error: InvalidRequest


def undecodable(what: str) -> InvalidRequest:
    """The error that a message deserves which is none."""
    return InvalidRequest((FieldViolation("message", what),))


def parse(cls: type[M], data: bytes) -> M:
    """Read one message. Raises InvalidRequest."""
    try:
        return cls.FromString(data)
    except DecodeError:
        raise undecodable(f"{len(data)} bytes that are no {cls.DESCRIPTOR.name}") from None


def tolerant(read: Callable[[bytes], T]) -> Callable[[bytes], T | Undecodable]:
    """A deserializer for gRPC of a reader that raises InvalidRequest."""

    def deserialize(data: bytes) -> T | Undecodable:
        try:
            return read(data)
        except InvalidRequest as error:
            return Undecodable(error)

    return deserialize


@dataclass(frozen=True, slots=True)
class Reader(Generic[M]):
    """Reads messages of one class; as a deserializer of `tolerant`."""

    cls: type[M]

    def __call__(self, data: bytes) -> M:
        """Raises InvalidRequest."""
        return parse(self.cls, data)
