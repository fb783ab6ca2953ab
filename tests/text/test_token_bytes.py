"""Tokens as bytes, one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.vocabularies import byte_level, wrap
from text.token_bytes import bytes_of, shown

CASES = [
    # token, byte level, want
    ("Ġhi", True, b" hi"),
    ("Ċ", True, b"\n"),
    ("Ã", True, b"\xc3"),
    ("▁hi", False, b" hi"),
    ("<0xE2>", False, b"\xe2"),
    ("é", False, "é".encode()),
]


@pytest.mark.parametrize(("token", "is_byte_level", "want"), CASES)
def test_spellings(token: str, is_byte_level: bool, want: bytes) -> None:
    assert bytes_of(token, is_byte_level=is_byte_level) == want


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_all_tokens_are_the_text(text: str) -> None:
    tokenizer = wrap(byte_level())
    token_ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == text.encode()


def test_halves_of_characters_are_told_apart() -> None:
    assert shown(b"\xc3\xa9") == "é"
    assert shown(b"\xc3") == "bytes:\\xc3"


def test_special_and_unknown_tokens() -> None:
    tokenizer = wrap(byte_level())
    [token_id] = tokenizer.encode("<|a|>")
    assert tokenizer.token_text(token_id) == "<|a|>"
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
