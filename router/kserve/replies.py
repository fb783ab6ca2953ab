"""Answers and their pieces as inference responses."""

from router.events import Accepted, Delta, Event, Finished
from router.http.shapes import Piece
from router.http.whole import Collected
from router.kserve.ask import OUTPUTS, Inference
from router.kserve.tensors import Output, Value, add_output
from rpc.pb import inference_pb2

VERSION = "1"
"""Of every model: versions are models of their own here."""
FINAL = "triton_final_response"


def whole(asked: Inference, answer: Collected, request_id: str) -> inference_pb2.ModelInferResponse:
    """All choices of all prompts, in order."""
    pieces = [answer.pieces[index] for index in sorted(answer.pieces)]
    message = _response(asked, answer.model, request_id, pieces)
    _add_usage(message, answer)
    return message


class Pieces:
    """A stream's responses to one request."""

    def __init__(self, asked: Inference, request_id: str) -> None:
        self._asked = asked
        self._request_id = request_id
        self._answer = Collected(asked.num_choices, keep=False)
        self._num_finished = 0

    def take(self, prompt: int, event: Event) -> inference_pb2.ModelInferResponse | None:
        """What one event makes to send."""
        self._answer.take(prompt, event)
        if isinstance(event, Accepted):
            return None
        message = _response(self._asked, self._answer.model, self._request_id, [_piece(event)])
        message.parameters["choice"].int64_param = self._answer.choice_of(prompt, event)
        self._num_finished += isinstance(event, Finished)
        is_last = self._num_finished == len(self._asked.drafts) * self._asked.num_choices
        message.parameters[FINAL].bool_param = is_last
        if is_last:
            _add_usage(message, self._answer)
        return message


def _piece(event: Delta | Finished) -> Piece:
    if isinstance(event, Finished):
        return Piece(finished=event)
    return Piece(text=event.text, token_ids=list(event.token_ids))


def _response(
    asked: Inference, model: str, request_id: str, pieces: list[Piece]
) -> inference_pb2.ModelInferResponse:
    message = inference_pb2.ModelInferResponse(model_name=model, model_version=VERSION, id=asked.id)
    message.parameters["request_id"].string_param = request_id
    for name, datatype in OUTPUTS.items():
        if name in asked.outputs:
            values = _values(name, pieces)
            add_output(message, Output(name, datatype, values), as_raw=asked.as_raw)
    return message


def _values(name: str, pieces: list[Piece]) -> list[Value]:
    if name == "text_output":
        return [piece.text.encode() for piece in pieces]
    if name == "output_ids":
        return [token_id for piece in pieces for token_id in piece.token_ids]
    return [_reason(piece) for piece in pieces]


def _reason(piece: Piece) -> bytes:
    return piece.finished.reason.value.encode() if piece.finished is not None else b""


def _add_usage(message: inference_pb2.ModelInferResponse, answer: Collected) -> None:
    usage = answer.tally.usage()
    for name in ("prompt_tokens", "completion_tokens"):
        message.parameters[name].int64_param = usage[name]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    message.parameters["cached_tokens"].int64_param = cached
