"""Incremental detokenization: the law, and the cases it must not get wrong."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from tests.text.vocabularies import KINDS, byte_level, llama_2, metaspace, wrap
from text.detokenizer import MAX_WINDOW_TOKENS, Detokenizer
from text.tokenizer import Tokenizer

TOKENIZERS = {kind: wrap(make()) for kind, make in KINDS.items()}
UNKNOWN_ID = 99_999


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any tokens; and many of those beyond ASCII, which make and break characters."""
    any_id = st.integers(0, tokenizer.vocab_size - 1)
    high_id = st.integers(tokenizer.vocab_size // 2, tokenizer.vocab_size - 1)
    return st.lists(any_id | high_id | st.just(UNKNOWN_ID), max_size=60)


def split(token_ids: list[int], sizes: list[int]) -> Iterator[list[int]]:
    rest = iter(token_ids)
    for size in itertools.chain(sizes, itertools.repeat(1)):
        if not (piece := list(itertools.islice(rest, size))):
            return
        yield piece


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@given(data=st.data(), sizes=st.lists(st.integers(1, 5)))
def test_pieces_and_flush_are_the_whole_text(
    kind: str, skip_special_tokens: bool, data: st.DataObject, sizes: list[int]
) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = data.draw(ids_of(tokenizer))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    pieces = [detokenizer.push(piece) for piece in split(token_ids, sizes)]
    want = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    assert "".join(pieces) + detokenizer.flush() == want
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_no_piece_of_good_text_holds_half_a_character(kind: str, text: str) -> None:
    detokenizer = Detokenizer(TOKENIZERS[kind])
    token_ids = TOKENIZERS[kind].encode(text)
    pieces = [detokenizer.push([token_id]) for token_id in token_ids]
    assert not any("\ufffd" in piece for piece in [*pieces, detokenizer.flush()])


CASES = [
    # id, vocabulary, tokens, pieces, flush
    ("an emoji over four tokens", byte_level(), "ð Ł ĺ Ģ", ["", "", "", "😀"], ""),
    ("text behind an unfinished one", byte_level(), "a ð b", ["a", "", "\ufffdb"], ""),
    ("cut off within one", byte_level(), "a ð Ł", ["a", "", ""], "\ufffd"),
    ("a special token within one", byte_level(), "ðŁ <|a|> ĺĢ", ["", "", "😀"], ""),
    ("leading space of a text", llama_2(), "▁a ▁a", ["a", " a"], ""),
    ("first token is only a space", llama_2(), "▁ ▁a", ["", " a"], ""),
    ("bytes wait for their run's end", llama_2(), "a <0x0A> a", ["a", "", "\na"], ""),
    ("bytes at the end", llama_2(), "a <0xC3> <0xA9>", ["a", "", ""], "é"),
    ("one bad byte spoils its run", llama_2(), "<0x41> <0xFF> a", ["", "", "\ufffd\ufffda"], ""),
    ("words get their spaces", metaspace(), "▁a ▁the ,", ["a", " the", ","], ""),
]


@pytest.mark.parametrize(
    ("raw", "tokens", "want", "want_flush"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_pieces(raw: RawTokenizer, tokens: str, want: list[str], want_flush: str) -> None:
    detokenizer = Detokenizer(wrap(raw))
    vocab = raw.get_vocab()
    pieces = [detokenizer.push([vocab[token]]) for token in tokens.split()]
    assert (pieces, detokenizer.flush()) == (want, want_flush)


class CountingTokenizer(Tokenizer):
    """Notes the longest text it had to decode."""

    max_decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.max_decoded = max(self.max_decoded, len(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("byte", [0x61, 0x80, 0xE2, 0xFF])
def test_the_window_is_bounded_whatever_the_model_says(byte: int) -> None:
    tokenizer = CountingTokenizer(byte_level().to_str().encode(), {}, {})
    detokenizer = Detokenizer(tokenizer)
    num_chars = sum(len(detokenizer.push([byte])) for _ in range(1000))
    assert num_chars >= 1000 - MAX_WINDOW_TOKENS
    assert tokenizer.max_decoded <= MAX_WINDOW_TOKENS + 1
