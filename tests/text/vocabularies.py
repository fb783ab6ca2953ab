"""Small tokenizers of the kinds that language models come with."""

from collections.abc import Callable

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from deploy.tiny_model import byte_tokens
from text.tokenizer import Tokenizer

# Tokens that begin, continue and end characters of 1 to 4 bytes, and bytes that never do.
PIECES = [
    *(b"\xf0\x9f", b"\x98\x80", b"\x80 a", b"\xe2\x82", b"\xac\xf0", b"\xef\xbf\xbd"),
    *(b"a\xc3", b"\xff\xff", b" the", "é".encode(), "😀".encode()),
]
BYTES = [bytes([byte]) for byte in range(256)]
BYTE_WORDS = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁a", "a", "▁the", "é", "\ufffd", ","]


def wrap(raw: RawTokenizer) -> Tokenizer:
    """Our tokenizer around the library's."""
    return Tokenizer(raw.to_str().encode(), {}, {})


def byte_level() -> RawTokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM have it."""
    letters = byte_tokens()
    tokens = ["".join(letters[byte] for byte in piece) for piece in [*BYTES, *PIECES]]
    raw = RawTokenizer(models.BPE(vocab=_numbered(tokens), merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return _with_added_tokens(raw)


def byte_fallback(*ends: decoders.Decoder) -> RawTokenizer:
    """As SentencePiece models have it."""
    vocab = _numbered([*WORDS, *BYTE_WORDS])
    raw = RawTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    raw.decoder = decoders.Sequence(steps)
    return _with_added_tokens(raw)


def llama_2() -> RawTokenizer:
    """Byte fallback that drops a text's first space."""
    return byte_fallback(decoders.Strip(" ", 1, 0))


def metaspace() -> RawTokenizer:
    """As T5 has it: no bytes at all."""
    raw = RawTokenizer(models.BPE(vocab=_numbered(WORDS), merges=[]))
    raw.decoder = decoders.Metaspace()
    return _with_added_tokens(raw)


def undecorated() -> RawTokenizer:
    """No decoder: tokens are joined by spaces."""
    return _with_added_tokens(RawTokenizer(models.BPE(vocab=_numbered(WORDS), merges=[])))


KINDS: dict[str, Callable[[], RawTokenizer]] = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "byte fallback, first space dropped": llama_2,
    "metaspace": metaspace,
    "no decoder": undecorated,
}


def _with_added_tokens(raw: RawTokenizer) -> RawTokenizer:
    raw.add_special_tokens([AddedToken("<|a|>", normalized=False), AddedToken("<|b|>")])
    raw.add_tokens([AddedToken("<plain>", normalized=False)])
    return raw


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(dict.fromkeys(tokens))}
