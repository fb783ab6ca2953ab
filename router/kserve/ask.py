"""From an inference request to drafts: tensors and parameters are options of OpenAI's names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.errors import InvalidRequest
from core.request import SamplingParams
from core.validation import RequestDraft
from router.http.body import violations_of
from router.http.drafts import completion_drafts
from router.http.errors import invalid
from router.http.fields import CompletionFields
from router.kserve.tensors import Tensor, option_of, read_tensors, text_of
from rpc.pb import inference_pb2

TEXT, TOKENS, JSON_OPTIONS = "text_input", "input_ids", "sampling_parameters"
OUTPUTS = {"text_output": "BYTES", "output_ids": "INT64", "finish_reason": "BYTES"}
INPUTS = {TEXT: "BYTES", TOKENS: "INT64", JSON_OPTIONS: "BYTES"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What one client wants."""

    drafts: tuple[RequestDraft, ...]
    outputs: frozenset[str]
    as_raw: bool
    """Elements of the answer travel as those of the request."""
    id: str
    """The client's own; repeated in the answer."""

    @property
    def num_choices(self) -> int:
        """Per prompt."""
        return self.drafts[0].num_choices


def read_inference(
    message: inference_pb2.ModelInferRequest, defaults: SamplingParams, origin: RequestDraft
) -> Inference:
    """Raises InvalidRequest or Unsupported."""
    options = {name: _value(parameter) for name, parameter in message.parameters.items()}
    tensors = read_tensors(message)
    for tensor in tensors:
        options |= _options(tensor)
    fields = _fields(options | {"model": message.model_name})
    return Inference(
        drafts=tuple(completion_drafts(fields, defaults, origin)),
        outputs=_wanted(message),
        as_raw=bool(message.raw_input_contents),
        id=message.id,
    )


def _options(tensor: Tensor) -> Mapping[str, Any]:
    if tensor.name == TEXT:
        return {"prompt": [text_of(TEXT, value) for value in tensor.values]}
    if tensor.name == TOKENS:
        return {"prompt": _rows(tensor)}
    value = option_of(tensor)
    return _parsed(value) if tensor.name == JSON_OPTIONS else {tensor.name: value}


def _rows(tensor: Tensor) -> list[Any]:
    if len(tensor.shape) < 2:
        return tensor.values
    size = tensor.shape[1]
    starts = range(0, len(tensor.values), size or 1)
    return [tensor.values[start : start + size] for start in starts]


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(JSON_OPTIONS, "must be a JSON object") from None
    if not isinstance(options, dict):
        raise invalid(JSON_OPTIONS, "must be a JSON object")
    return options


def _value(parameter: inference_pb2.InferParameter) -> Any:  # noqa: ANN401 - one of five types
    which = parameter.WhichOneof("parameter_choice")
    return None if which is None else getattr(parameter, which)


def _fields(options: Mapping[str, Any]) -> CompletionFields:
    try:
        return CompletionFields.model_validate(options)
    except ValidationError as error:
        raise InvalidRequest(violations_of(error)) from None


def _wanted(message: inference_pb2.ModelInferRequest) -> frozenset[str]:
    names = frozenset(output.name for output in message.outputs)
    if names - OUTPUTS.keys():
        raise invalid("outputs", f"there are {', '.join(OUTPUTS)}")
    return names or frozenset(OUTPUTS)
