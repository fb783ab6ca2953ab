"""OpenAI's completions and chat completions, as requests and as streams; no IO."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.errors import AnswerFailed, BadAnswer
from bench.load.offer import Arrival
from bench.load.outcome import Event, Tokens, Usage
from bench.load.sse import SseReader
from core.errors import PeerLost

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
DONE = b"[DONE]"
_TEXT = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car"
)
WORDS = _TEXT.split()
"""Each is one token in the usual tokenizers when a space precedes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a server is asked."""

    model: str
    api: str = "completions"
    """One of PATHS."""
    is_text: bool = False
    """Prompts of words, about one token each, in place of token ids; chats are always text."""
    ignore_eos: bool = True
    """Answers have exactly the length asked for. Not in OpenAI's own API."""
    usage_per_chunk: bool = True
    """Chunks tell how many tokens there are so far. Not in OpenAI's own API."""

    def body(self, arrival: Arrival) -> dict[str, Any]:
        """JSON of the request."""
        options: dict[str, Any] = {"include_usage": True}
        if self.usage_per_chunk:
            options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": arrival.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": options,
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self._prompt(arrival.token_ids)

    def _prompt(self, token_ids: Sequence[int]) -> dict[str, Any]:
        if self.api == "chat":
            return {"messages": [{"role": "user", "content": words(token_ids)}]}
        return {"prompt": words(token_ids) if self.is_text else list(token_ids)}


def words(token_ids: Sequence[int]) -> str:
    """As many words as tokens; equal tokens give equal words."""
    return " ".join(WORDS[token_id % len(WORDS)] for token_id in token_ids)


class StreamReader:
    """One answer's bytes to events."""

    def __init__(self) -> None:
        self._sse = SseReader()
        self._num_tokens = 0
        """By the server's own count."""
        self._is_told = True
        """False once tokens came without a count: one that comes later is of the whole answer."""
        self._is_whole = False

    def feed(self, received: bytes) -> Iterator[Event]:
        """What `received` tells. Raises AnswerFailed or BadAnswer."""
        for data in self._sse.feed(received):
            if data == DONE:
                self._is_whole = True
            else:
                yield from self._events(_chunk(data))

    def end(self) -> None:
        """The server has closed the stream. Raises PeerLost when that was too early."""
        if not self._is_whole:
            raise PeerLost("the server ended the stream before its [DONE]")

    def _events(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        if error := chunk.get("error"):
            raise AnswerFailed(f"the stream told an error: {json.dumps(error)}")
        choices, usage = chunk.get("choices") or (), _usage(chunk)
        if usage is not None and choices and self._is_told:
            num_new = usage.num_output_tokens - self._num_tokens
            self._num_tokens = usage.num_output_tokens
            if num_new > 0:
                yield Tokens(num_new)
            return
        if any(map(_has_text, choices)):
            self._is_told = False
            yield Tokens(1, is_told=False)
        if usage is not None:
            yield usage


def _chunk(data: bytes) -> Mapping[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise BadAnswer(f"an event is no JSON object: {data[:80]!r}")
    return chunk


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    usage = chunk.get("usage")
    if not usage:
        return None
    return Usage(int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether tokens came with it: the first chunk of a chat holds a role, the last a reason."""
    delta = choice.get("delta") or {}
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    return bool(choice.get("text") or delta.get("content") or thought)
