"""Text ↔ token ids, from the files in a model's folder."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from core.errors import FieldViolation, InvalidRequest, ModelError
from text.chat_template import ChatTemplate, Message
from text.model_files import read_object
from text.token_bytes import BYTE_TOKEN, bytes_of, shown

Json = dict[str, Any]


class Tokenizer:
    """A model's tokenizer and chat template; immutable, safe to share between threads."""

    digest: str
    """Hex digest of tokenizer.json; part of the fingerprint."""
    eos_token_ids: tuple[int, ...]
    """Ids that end an answer, as generation_config.json or else its neighbours name them."""

    def __init__(self, tokenizer_json: bytes, config: Json, generation_config: Json) -> None:
        self._tokenizer = _parse(tokenizer_json)
        self._special_tokens = dict(_special_tokens(config))
        self._template_source = _template_source(config)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._is_byte_level = "ByteLevel" in repr(self._tokenizer.decoder)
        self.digest = hashlib.sha256(tokenizer_json).hexdigest()
        self.eos_token_ids = self._eos_token_ids(generation_config)

    @classmethod
    def load(cls, model_dir: Path) -> "Tokenizer":
        """Read the folder of a Hugging Face checkpoint.

        Raises:
            ModelError: a file is missing or damaged; names it.
        """
        path = model_dir / "tokenizer.json"
        try:
            tokenizer_json = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        config = read_object(model_dir / "tokenizer_config.json")
        template_path = model_dir / "chat_template.jinja"
        if template_path.is_file():
            config["chat_template"] = template_path.read_text(encoding="utf-8")
        # transformers' generate() asks them in this order.
        generation_config = read_object(model_dir / "config.json")
        generation_config |= read_object(model_dir / "generation_config.json")
        try:
            tokenizer = cls(tokenizer_json, config, generation_config)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        # Now, and not while a first token waits: it reads the whole vocabulary.
        _ = tokenizer.byte_token_ids
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's own may be larger for padding."""
        return self._tokenizer.get_vocab_size()

    @cached_property
    def byte_token_ids(self) -> frozenset[int]:
        """Tokens that mean one raw byte each; several make a character. Empty for byte-level BPE,
        whose tokens are all bytes.
        """
        vocab = self._tokenizer.get_vocab().items()
        return frozenset(token_id for token, token_id in vocab if BYTE_TOKEN.fullmatch(token))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a plain prompt, with the special tokens that the model wants around it."""
        return self._encode(text, add_special_tokens=add_special_tokens)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a chat prompt. The template wrote the special tokens, so none are added."""
        return self._encode(self.apply_chat_template(messages), add_special_tokens=False)

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the assistant's next message.

        Raises:
            InvalidRequest: the model has no usable template, or it refuses these messages.
        """
        return self._chat_template.render(messages)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole answer; bytes that make no character become U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def is_silent(self, token_id: int, *, skip_special_tokens: bool = True) -> bool:
        """Whether `decode` gives the same text without this token, wherever it stands."""
        if skip_special_tokens and token_id in self._special_ids:
            return True
        return not self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text; empty for ids that pad the vocabulary."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return token.encode()
        return bytes_of(token, is_byte_level=self._is_byte_level)

    def token_text(self, token_id: int) -> str:
        """The same for people."""
        return shown(self.token_bytes(token_id))

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        if self._template_source is None:
            reason = "the model has no chat template; send a plain prompt"
            raise InvalidRequest((FieldViolation("messages", reason),))
        return ChatTemplate(self._template_source, self._special_tokens)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            # The only str that the library cannot take: JSON's "\ud800" decodes to such a one.
            reason = "must be valid Unicode, found a lone surrogate"
            raise InvalidRequest((FieldViolation("prompt", reason),)) from error

    def _eos_token_ids(self, generation_config: Json) -> tuple[int, ...]:
        ids: int | list[int] | None = generation_config.get("eos_token_id")
        if ids is None:
            ids = self._tokenizer.token_to_id(self._special_tokens.get("eos_token", ""))
        if ids is None:
            return ()
        return (ids,) if isinstance(ids, int) else tuple(ids)


def _parse(tokenizer_json: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"not a tokenizer: {error}") from error


def _special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, token in config.items():
        if name.endswith("_token"):
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                yield name, text


def _template_source(config: Mapping[str, Any]) -> str | None:
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source
