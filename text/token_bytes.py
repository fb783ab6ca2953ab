"""What one token stands for, as bytes: vocabularies spell them in ways of their own."""

import re
from collections.abc import Mapping
from functools import cache

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies with byte fallback spell the token of a raw byte."""
SPACE = "\u2581"
"""How SentencePiece spells a space."""


def bytes_of(token: str, *, is_byte_level: bool) -> bytes:
    """Of a token that is not special."""
    if found := BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(found[1])
    if is_byte_level:
        known = _bytes_by_character()
        return bytes(known[character] for character in token if character in known)
    return token.replace(SPACE, " ").encode()


def shown(data: bytes) -> str:
    """As text; what is no whole character is spelled, so that no two tokens look alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@cache
def _bytes_by_character() -> Mapping[str, int]:
    """GPT-2's spelling (Radford et al. 2019): printable bytes are themselves, the other 68 are the
    characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + i): byte for i, byte in enumerate(others)}
