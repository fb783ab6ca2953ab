"""One answer's tokens as text, up to where a stop string ends it; no IO."""

from collections.abc import Sequence
from dataclasses import dataclass

from text.detokenizer import Detokenizer
from text.stop_strings import StopMatcher
from text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What some tokens became."""

    num_tokens: int
    """Of those pushed: fewer when a stop string ended the answer before the last."""
    text: str
    matched_stop: str | None


class AnswerText:
    """Detokenizes and looks for stop strings."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stop_strings) if stop_strings else None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """The text that these tokens make certain."""
        if self._matcher is None:
            return Piece(len(token_ids), self._detokenizer.push(token_ids), None)
        parts: list[str] = []
        # One by one: the answer ends with the token that completes a stop string.
        for num_tokens, token_id in enumerate(token_ids, 1):
            result = self._matcher.push(self._detokenizer.push([token_id]))
            parts.append(result.emit)
            if result.matched is not None:
                return Piece(num_tokens, "".join(parts), result.matched)
        return Piece(len(token_ids), "".join(parts), None)

    def flush(self) -> Piece:
        """What was held back; the answer has ended."""
        text = self._detokenizer.flush()
        if self._matcher is None:
            return Piece(0, text, None)
        result = self._matcher.push(text, final=True)
        return Piece(0, result.emit, result.matched)
