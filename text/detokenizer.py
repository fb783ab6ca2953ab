"""Token ids → text while they arrive, never half a character."""

from collections.abc import Sequence

from text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What bytes that make no character decode to; at the end of a text, perhaps only not yet."""

MAX_WINDOW_TOKENS = 16
"""Above it a window that ends in no character is cut. A character is 4 tokens at most."""


class Detokenizer:
    """One answer's text. All pieces and the flush together are `decode` of all its ids.

    Decoding is left to the tokenizer. A window of the last tokens is decoded anew for each
    token; it begins with one whose text is out already, because the first token of a text
    may lose its leading space.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._num_emitted_chars = 0
        """How much of the window's text is out."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make certain."""
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """What was held back; the answer has ended."""
        text = self._decode(self._window)
        piece = text[self._num_emitted_chars :]
        self._num_emitted_chars = len(text)
        return piece

    def _push_one(self, token_id: int) -> str:
        if self._tokenizer.is_silent(token_id, skip_special_tokens=self._skip_special_tokens):
            return ""
        self._window.append(token_id)
        # One byte may turn all those before it into U+FFFD: they are certain when the run ends.
        if token_id in self._tokenizer.byte_token_ids:
            return ""
        text = self._decode(self._window)
        # A beginning of a character decodes to one U+FFFD, however many bytes it has.
        certain = text.removesuffix(REPLACEMENT)
        piece = certain[self._num_emitted_chars :]
        self._num_emitted_chars = len(certain)
        if certain == text:
            self._restart(token_id)
        elif len(self._window) > MAX_WINDOW_TOKENS:
            self._cut(text)
        return piece

    def _restart(self, token_id: int) -> None:
        self._window = [token_id]
        self._num_emitted_chars = len(self._decode(self._window))

    def _cut(self, text: str) -> None:
        """Drop as many of the first tokens as can go without splitting a character."""
        for start in range(len(self._window) - 1, 0, -1):
            before, after = self._decode(self._window[:start]), self._decode(self._window[start:])
            if after and before + after == text:
                self._window = self._window[start:]
                self._num_emitted_chars -= len(before)
                return

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
