"""Finds where an answer's text meets a stop string, and lets nothing of that string out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """What one push lets out."""

    emit: str
    matched: str | None
    """The stop string that ended the answer with this push."""


class StopMatcher:
    """Matches one answer. Of several stop strings the one that is complete first wins; of those
    complete at the same character, the longest.

    Push the text of one token at a time: the answer then stops at the token whose push matched.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        assert all(stop_strings), "an empty stop string would end every answer before it began"
        self._stop_strings = tuple(stop_strings)
        self._beginnings = {stop[:end] for stop in stop_strings for end in range(1, len(stop))}
        self._max_held_chars = max(map(len, self._beginnings), default=0)
        self._held = ""
        self._matched = False

    def push(self, text: str, final: bool = False) -> StopResult:
        """Take the next text; `final` lets out what was held back. Nothing follows a match."""
        if self._matched:
            return StopResult("", None)
        text = self._held + text
        if found := self._find(text):
            start, stop = found
            self._matched = True
            return StopResult(text[:start], stop)
        num_certain_chars = len(text) - (0 if final else self._num_held_chars(text))
        self._held = text[num_certain_chars:]
        return StopResult(text[:num_certain_chars], None)

    def _find(self, text: str) -> tuple[int, str] | None:
        starts = [(text.find(stop), stop) for stop in self._stop_strings]
        # (end, start): complete first, then longest.
        matches = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        return min(matches)[1:] if matches else None

    def _num_held_chars(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string may go on from."""
        longest = min(len(text), self._max_held_chars)
        ends = (size for size in range(longest, 0, -1) if text[-size:] in self._beginnings)
        return next(ends, 0)
