"""Every number of a message, found in its descriptor: a field that is new has its cases at once."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Path = tuple[str, ...]
Number = int | float

_INF = float("inf")
_UNSIGNED_32: tuple[Number, ...] = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
_SIGNED_32: tuple[Number, ...] = (-(2**31), -1, 0, 2**31 - 1)
_UNSIGNED_64: tuple[Number, ...] = (0, 1, 2**32, 2**63, 2**64 - 1)
_SIGNED_64: tuple[Number, ...] = (-(2**63), -1, 0, 2**63 - 1)
_REAL: tuple[Number, ...] = (-_INF, -1.0, 0.0, 1e-300, 1e300, _INF, float("nan"))
HOSTILE: dict[int, tuple[Number, ...]] = {
    FieldDescriptor.TYPE_UINT32: _UNSIGNED_32,
    FieldDescriptor.TYPE_FIXED32: _UNSIGNED_32,
    FieldDescriptor.TYPE_INT32: _SIGNED_32,
    FieldDescriptor.TYPE_SINT32: _SIGNED_32,
    FieldDescriptor.TYPE_SFIXED32: _SIGNED_32,
    FieldDescriptor.TYPE_ENUM: _SIGNED_32,
    FieldDescriptor.TYPE_UINT64: _UNSIGNED_64,
    FieldDescriptor.TYPE_FIXED64: _UNSIGNED_64,
    FieldDescriptor.TYPE_INT64: _SIGNED_64,
    FieldDescriptor.TYPE_SINT64: _SIGNED_64,
    FieldDescriptor.TYPE_SFIXED64: _SIGNED_64,
    FieldDescriptor.TYPE_DOUBLE: _REAL,
    FieldDescriptor.TYPE_FLOAT: (-_INF, -1.0, 0.0, 1e-30, 1e30, _INF, float("nan")),
}
"""Ends of what the wire can say, by type."""


def fields(descriptor: Any, above: Path = ()) -> Iterator[tuple[Path, FieldDescriptor]]:  # noqa: ANN401 - of two types by stub
    """All that are no messages, with the way to them; maps are left to their own tests."""
    for field in descriptor.fields:
        path = (*above, field.name)
        nested = field.message_type
        if nested is None:
            yield path, field
        elif not nested.GetOptions().map_entry:
            yield from fields(nested, path)


def numbers(message: type[Message]) -> Iterator[tuple[Path, tuple[Number, ...]]]:
    """Each number's way, and what to try."""
    for path, field in fields(message.DESCRIPTOR):
        if field.type in HOSTILE:
            yield path, HOSTILE[field.type]


def changed(message: Message, path: Path, value: Number) -> bytes:
    """The message with one number set, in the first of repeated ones, as bytes."""
    copy = type(message)()
    copy.CopyFrom(message)
    at: Message = copy
    for name in path[:-1]:
        inner = getattr(at, name)
        at = inner if isinstance(inner, Message) else inner[0] if inner else inner.add()
    if at.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
        repeated = getattr(at, path[-1])
        repeated[:] = [value, *repeated[1:]]
    else:
        setattr(at, path[-1], value)
    return copy.SerializeToString()
