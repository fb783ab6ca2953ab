"""Tensors of the wire ↔ lists of values; typed or raw, bounded, no numpy needed."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from router.http.errors import invalid
from rpc.pb import inference_pb2

MAX_TENSORS = 64
MAX_DIMENSIONS = 2
_LENGTH = struct.Struct("<I")

Value = bool | int | float | bytes


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one datatype travels."""

    field: str
    """Of InferTensorContents."""
    code: str
    """Of struct; empty: BYTES."""


_KINDS = {
    "BOOL": _Kind("bool_contents", "?"),
    "INT32": _Kind("int_contents", "i"),
    "INT64": _Kind("int64_contents", "q"),
    "UINT32": _Kind("uint_contents", "I"),
    "UINT64": _Kind("uint64_contents", "Q"),
    "FP32": _Kind("fp32_contents", "f"),
    "FP64": _Kind("fp64_contents", "d"),
    "BYTES": _Kind("bytes_contents", ""),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input, its elements in row-major order."""

    name: str
    shape: tuple[int, ...]
    values: list[Value]


def read_tensors(message: inference_pb2.ModelInferRequest) -> list[Tensor]:
    """All inputs. Raises InvalidRequest."""
    inputs, raw = message.inputs, message.raw_input_contents
    if len(inputs) > MAX_TENSORS:
        raise invalid("inputs", f"at most {MAX_TENSORS}, got {len(inputs)}")
    if raw and len(raw) != len(inputs):
        raise invalid("raw_input_contents", f"{len(raw)} for {len(inputs)} inputs")
    return [_read(tensor, raw[i] if raw else None) for i, tensor in enumerate(inputs)]


def _read(tensor: inference_pb2.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    # The index would be unreadable in an error; a name that no input has is a client's own text.
    name = tensor.name if len(tensor.name) <= MAX_TENSORS else "inputs"
    kind = _KINDS.get(tensor.datatype)
    if kind is None:
        raise invalid(name, f"datatype must be one of {', '.join(_KINDS)}")
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise invalid(name, f"shape must have at most {MAX_DIMENSIONS} sizes from 0")
    if raw is None:
        values = list(getattr(tensor.contents, kind.field))
    else:
        values = _from_raw(name, kind, raw)
    if len(values) != prod(shape):
        raise invalid(name, f"{len(values)} elements in a tensor of shape {list(shape)}")
    return Tensor(name, shape, values)


def _from_raw(name: str, kind: _Kind, raw: bytes) -> list[Value]:
    if not kind.code:
        return list(_split(name, raw))
    size = struct.calcsize(f"<{kind.code}")
    if len(raw) % size:
        raise invalid(name, f"{len(raw)} bytes are no whole number of elements of {size}")
    return list(struct.unpack(f"<{len(raw) // size}{kind.code}", raw))


def _split(name: str, raw: bytes) -> list[bytes]:
    values, start = list[bytes](), 0
    while start < len(raw):
        end = start + _LENGTH.size
        if end > len(raw) or (stop := end + _LENGTH.unpack_from(raw, start)[0]) > len(raw):
            raise invalid(name, "a BYTES element is cut off")
        values.append(raw[end:stop])
        start = stop
    return values


def text_of(name: str, value: Value) -> str:
    """A BYTES element as text. Raises InvalidRequest."""
    if not isinstance(value, bytes):
        raise invalid(name, "must be of datatype BYTES")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise invalid(name, "must be UTF-8") from None


def option_of(tensor: Tensor) -> Any:  # noqa: ANN401 - what a JSON body would have there
    """The one value of an option's tensor. Raises InvalidRequest."""
    if len(tensor.values) != 1:
        raise invalid(tensor.name, f"must have one element, got {len(tensor.values)}")
    value = tensor.values[0]
    return text_of(tensor.name, value) if isinstance(value, bytes) else value


@dataclass(frozen=True, slots=True)
class Output:
    """One output; a shape of one dimension."""

    name: str
    datatype: str
    values: Sequence[Value]


def add_output(message: inference_pb2.ModelInferResponse, output: Output, *, as_raw: bool) -> None:
    """Append one output to a response."""
    kind = _KINDS[output.datatype]
    tensor = message.outputs.add(
        name=output.name, datatype=output.datatype, shape=[len(output.values)]
    )
    if as_raw:
        message.raw_output_contents.append(_to_raw(kind, output.values))
    else:
        getattr(tensor.contents, kind.field).extend(output.values)


def _to_raw(kind: _Kind, values: Sequence[Any]) -> bytes:
    if kind.code:
        return struct.pack(f"<{len(values)}{kind.code}", *values)
    return b"".join(_LENGTH.pack(len(value)) + value for value in values)
