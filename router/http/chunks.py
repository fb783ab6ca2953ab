"""An answer as a stream of chunks: OpenAI's server-sent events."""

import json
from collections import Counter
from collections.abc import Iterator

from router.events import Accepted, Delta, Event, Finished
from router.http.asked import Asked
from router.http.shapes import Json, Piece, ending
from router.http.whole import Collected

DONE = b"data: [DONE]\n\n"


def server_sent(document: Json) -> bytes:
    """One event; JSON has no line breaks of its own."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


class Chunks:
    """Events of all prompts in, bytes to send out."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._answer = Collected(asked.num_choices, keep=False)
        self._opened: set[int] = set()
        self._num_chars: Counter[int] = Counter()

    def take(self, prompt: int, event: Event) -> bytes:
        """What one event makes to send; nothing for the news that a request was admitted.

        So an answer that fails before its first token can still have a status of its own.
        """
        self._answer.take(prompt, event)
        if isinstance(event, Accepted):
            return b""
        return b"".join(map(server_sent, self._chunks(prompt, event)))

    def end(self) -> bytes:
        """After the last event."""
        if not self._asked.with_usage:
            return DONE
        return server_sent(self._frame([]) | {"usage": self._answer.tally.usage()}) + DONE

    def _chunks(self, prompt: int, event: Delta | Finished) -> Iterator[Json]:
        choice = self._answer.choice_of(prompt, event)
        if choice not in self._opened:
            self._opened.add(choice)
            opening = self._asked.shape.opening(self._asked.prompt_text(prompt))
            if opening is not None:
                yield self._chunk(prompt, choice, opening | ending(None))
        piece = self._piece(choice, event)
        fields = self._asked.shape.piece(piece) | ending(piece.finished)
        if self._asked.with_token_ids:
            fields["token_ids"] = piece.token_ids
        yield self._chunk(prompt, choice, fields)

    def _piece(self, choice: int, event: Delta | Finished) -> Piece:
        if isinstance(event, Finished):
            return Piece(finished=event)
        first_char = self._num_chars[choice]
        self._num_chars[choice] += len(event.text)
        return Piece(
            text=event.text,
            token_ids=list(event.token_ids),
            logprobs=list(event.logprobs),
            first_char=first_char,
        )

    def _chunk(self, prompt: int, choice: int, fields: Json) -> Json:
        frame = self._frame([{"index": choice} | fields])
        if self._asked.with_running_usage:
            return frame | {"usage": self._answer.tally.so_far(prompt, choice)}
        return frame | {"usage": None} if self._asked.with_usage else frame

    def _frame(self, choices: list[Json]) -> Json:
        return self._asked.frame(self._asked.shape.chunk_object, self._answer.model, choices)
