"""The output tokens of one answer: each position once, in order, up to the answer's end."""

from collections.abc import Sequence
from itertools import zip_longest

from core.request import FinishReason, StopParams, TokenLogprobs, finish_reason


class Delivery:
    """Puts tokens in order, whoever sends them and how often, and sees where the answer ends."""

    def __init__(self, stop: StopParams, forced: Sequence[int]) -> None:
        self._stop = stop
        self._token_ids = list(forced)
        self._early: dict[int, tuple[int, TokenLogprobs | None]] = {}
        self._told_end: tuple[int, FinishReason] | None = None
        self.end: FinishReason | None = None
        """Why the answer is complete; None while it is not."""
        if forced:
            self.end = finish_reason(stop, len(forced), forced[-1])

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All delivered tokens: forced in every later attempt."""
        return tuple(self._token_ids)

    @property
    def num_tokens(self) -> int:
        """How many were delivered: the next position."""
        return len(self._token_ids)

    @property
    def num_left(self) -> int:
        """How many more the answer may have."""
        return self._stop.max_tokens - len(self._token_ids)

    def take(
        self,
        first_position: int,
        token_ids: Sequence[int],
        reason: FinishReason | None,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]:
        """Accept tokens, repeated or early ones too, with their log-probabilities if there are any.

        Returns what is new and in order now.
        """
        if reason is not None:
            self._told_end = (first_position + len(token_ids), reason)
        for position, token in enumerate(zip_longest(token_ids, logprobs), first_position):
            # What is held back behind a gap is bounded by the answer itself.
            if self.num_tokens <= position < self._stop.max_tokens:
                self._early.setdefault(position, token)
        start = self.num_tokens
        new_logprobs = self._take_in_order()
        if self.end is None and self._told_end and self._told_end[0] <= self.num_tokens:
            self.end = self._told_end[1]
        return tuple(self._token_ids[start:]), tuple(new_logprobs)

    def _take_in_order(self) -> list[TokenLogprobs]:
        """Move what follows without a gap to the answer; its log-probabilities."""
        new_logprobs = []
        while self.end is None and (token := self._early.pop(self.num_tokens, None)) is not None:
            token_id, logprobs = token
            self._token_ids.append(token_id)
            if logprobs is not None:
                new_logprobs.append(logprobs)
            self.end = finish_reason(self._stop, self.num_tokens, token_id)
        return new_logprobs

    def forget_early(self) -> None:
        """Drop what was held back: its sender is gone, and the next one sends it again."""
        self._early.clear()
        self._told_end = None
