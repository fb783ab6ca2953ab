"""One choice's answer on its way to the client: text, stop strings, timing, end."""

from core.errors import BatonError
from core.request import FinishReason, Request, TokenLogprobs
from router.answer_text import AnswerText, Piece
from router.events import Delta, Finished
from router.output import ClientBuffer
from router.record import ChoiceRecord
from text.tokenizer import Tokenizer


class Answer:
    """Takes tokens in order; puts events into the client's buffer."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, buffer: ClientBuffer, record: ChoiceRecord
    ) -> None:
        self.record = record
        self.timeline = record.timeline
        self._choice = request.child_index
        self._buffer = buffer
        self._text = AnswerText(tokenizer, request.stop.stop_strings)
        self._num_tokens = 0
        self._matched_stop: str | None = None

    def begin(self, resumed_token_ids: tuple[int, ...]) -> bool:
        """Give the text of what the client has already; True when a stop string is in it."""
        if not resumed_token_ids:
            return False
        piece = self._text.push(resumed_token_ids)
        self._num_tokens = piece.num_tokens
        self._put(piece)
        return piece.matched_stop is not None

    def deliver(
        self,
        position: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> bool:
        """Give new tokens; True when a stop string ends the answer with one of them."""
        assert position == self._num_tokens, "the flow delivers without gaps"
        if self._matched_stop is not None:
            return False
        piece = self._text.push(token_ids)
        num_tokens = piece.num_tokens
        self._put(piece, token_ids[:num_tokens], logprobs[:num_tokens])
        return piece.matched_stop is not None

    def finish(self, reason: FinishReason, num_attempts: int) -> None:
        """The answer is complete."""
        if self._matched_stop is None:
            self._put(self._text.flush())
        self.timeline.num_attempts = num_attempts
        final = FinishReason.STOP if self._matched_stop is not None else reason
        self._buffer.finish(self._choice, self._num_tokens, lambda: self._finished(final))

    def fail(self, error: BatonError) -> None:
        """The answer will not be completed."""
        self._buffer.fail(error)

    def _put(
        self,
        piece: Piece,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> None:
        if token_ids or piece.text:
            delta = Delta(self._choice, self._num_tokens, token_ids, piece.text, logprobs)
            self._buffer.put(self._choice, delta, self.timeline.left)
        self._num_tokens += len(token_ids)
        self._matched_stop = piece.matched_stop or self._matched_stop

    def _finished(self, reason: FinishReason) -> Finished:
        return Finished(
            choice=self._choice,
            reason=reason,
            matched_stop=self._matched_stop or "",
            num_output_tokens=self._num_tokens,
            timing=self.timeline.timing(),
        )
