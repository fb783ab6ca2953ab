"""How an answer looks: as a completion or as a chat, whole or piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from core.request import TokenLogprobs
from router.events import Finished
from text.tokenizer import Tokenizer

Json = dict[str, Any]

IMPOSSIBLE = -9999.0
"""The log-probability of what cannot be."""


@dataclass(slots=True, kw_only=True)
class Piece:
    """Some of one choice's answer; in a whole answer, all of it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    first_char: int = 0
    """Where `text` begins in the choice's text."""
    finished: Finished | None = None


class Shape(Protocol):
    """What differs between the two kinds of answers."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    id_prefix: ClassVar[str]

    def opening(self, prompt: str) -> Json | None:
        """What a stream says of a choice before its first token; None: nothing."""
        ...

    def piece(self, piece: Piece) -> Json:
        """Of a stream: one choice's next fields."""
        ...

    def whole(self, piece: Piece, prompt: str) -> Json:
        """Of a whole answer: one choice's fields."""
        ...


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Of /v1/completions."""

    tokenizer: Tokenizer
    echo: bool
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"
    id_prefix: ClassVar[str] = "cmpl-"

    def opening(self, prompt: str) -> Json | None:
        """The prompt, where it was asked for."""
        return {"text": prompt, "logprobs": None} if self.echo else None

    def piece(self, piece: Piece) -> Json:
        """Text, as it is."""
        return {"text": piece.text, "logprobs": self._logprobs(piece)}

    def whole(self, piece: Piece, prompt: str) -> Json:
        """Text, after the prompt where that was asked for."""
        text = prompt + piece.text if self.echo else piece.text
        return {"text": text, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece) -> Json | None:
        if not piece.logprobs:
            return None
        names = [self.tokenizer.token_text(token_id) for token_id in piece.token_ids]
        return {
            "tokens": names,
            "token_logprobs": [_finite(token.logprob) for token in piece.logprobs],
            "top_logprobs": [self._likeliest(token) for token in piece.logprobs],
            "text_offset": _offsets(names, piece.first_char),
        }

    def _likeliest(self, token: TokenLogprobs) -> Json:
        return {
            self.tokenizer.token_text(token_id): _finite(value) for token_id, value in token.top
        }


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Of /v1/chat/completions."""

    tokenizer: Tokenizer
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    id_prefix: ClassVar[str] = "chatcmpl-"

    def opening(self, prompt: str) -> Json | None:
        """Who speaks."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece(self, piece: Piece) -> Json:
        """The next words."""
        delta = {"content": piece.text} if piece.text or piece.token_ids else {}
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def whole(self, piece: Piece, prompt: str) -> Json:
        """The assistant's message."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece) -> Json | None:
        if not piece.logprobs:
            return None
        tokens = zip(piece.token_ids, piece.logprobs, strict=True)
        content = [
            self._entry(token_id, token.logprob)
            | {"top_logprobs": [self._entry(*likely) for likely in token.top]}
            for token_id, token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        name = self.tokenizer.token_text(token_id)
        raw = self.tokenizer.token_bytes(token_id)
        return {"token": name, "logprob": _finite(logprob), "bytes": list(raw)}


def ending(finished: Finished | None) -> Json:
    """Why a choice ended; the stop string that ended it as vLLM tells it."""
    if finished is None:
        return {"finish_reason": None}
    return {"finish_reason": finished.reason.value, "stop_reason": finished.matched_stop or None}


def _finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI's word for impossible."""
    return max(logprob, IMPOSSIBLE)


def _offsets(names: Sequence[str], first_char: int) -> list[int]:
    offsets = []
    for name in names:
        offsets.append(first_char)
        first_char += len(name)
    return offsets
