"""Structured output: which tokens can still lead to an answer that matches its grammar.

Grammars come from clients, so compiling is bounded: by the library's own limits, and by a few of
ours where it has none.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from core.errors import FieldViolation, InvalidRequest, ModelError
from core.request import Grammar, GrammarKind

logger = logging.getLogger(__name__)

Json = dict[str, Any]

PackedMask = npt.NDArray[np.uint8]
"""One bit per token of the vocabulary, lowest bit first; set: the token may come next."""

MAX_COMPILED = 64
"""Compiled grammars kept; requests of one kind share theirs, and compiling costs milliseconds."""
MAX_JOINED_PATTERNS = 10
"""Different patterns and formats in a schema that may ask one string to match several of them.
Whether they can agree is searched without a limit: each doubles the time. Of the worst patterns
known 12 took a second; of simple ones 20 took 1.6 s, and 30 did not end in 80 s."""
MAX_COMPILE_STEPS = 50_000
"""Of building the automaton. 500 properties with a pattern each fit; what does not is refused
within 0.2 s, and the largest schema that fits (2,000 properties in 56 kB) takes 0.3 to 0.6 s."""
MAX_REASON_CHARS = 200
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of JSON. Bounded: models have been seen to write blanks until their limit."""

_LIMITS = LLParserLimits(
    initial_lexer_fuel=MAX_COMPILE_STEPS,
    step_lexer_fuel=100_000,  # 10 ms
    max_lexer_states=50_000,  # 100 MB
    verbose_errors=False,  # the verbose ones tell the answer so far
)
_JOINING = frozenset({"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "patternProperties"})
_FIELD = "sampling.grammar"


class Matcher:
    """How far one answer has come in its grammar; for one thread at a time."""

    def __init__(self, matcher: LLMatcher, end_mask: PackedMask) -> None:
        self._matcher = matcher
        self._end_mask = end_mask
        self._has_failed = False

    @property
    def is_accepting(self) -> bool:
        """The answer so far matches as a whole: it may end here."""
        return not self._has_failed and self._matcher.is_accepting()

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on by some output tokens. From one that does not fit on, the answer can only end."""
        if token_ids and not self._has_failed:
            num_taken = self._matcher.try_consume_tokens(list(token_ids))
            self._has_failed = num_taken < len(token_ids)

    def mask(self) -> PackedMask:
        """The tokens that may come next: never none, and only the end when nothing else is left."""
        if not self._has_failed:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(self._end_mask)]
            if not self._matcher.is_error():
                # None: the vocabulary has no token for what must follow.
                return bits if bits.any() else self._end_mask
            logger.warning("grammar given up: %s", _one_line(self._matcher.get_error()))
            self._has_failed = True
        return self._end_mask


class GrammarCompiler:
    """Compiles grammars for one model's vocabulary; safe to share between threads."""

    def __init__(
        self, tokenizer_json: bytes, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """`vocab_size` is the width of the model's logits: what pads it is never allowed.

        A tokenizer that cannot be used is told with the first grammar: the model serves without.
        """
        self._end_mask = _packed(eos_token_ids, vocab_size)
        self._tokenizer: LLTokenizer | None = None
        self._problem = "the model has no end-of-sequence token, so no answer could end"
        if eos_token_ids:
            self._read_tokenizer(tokenizer_json, vocab_size, eos_token_ids)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @classmethod
    def load(
        cls, model_dir: Path, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> "GrammarCompiler":
        """Read the folder of a Hugging Face checkpoint; 0.3 s per 50,000 tokens.

        Raises:
            ModelError: it has no tokenizer.
        """
        path = model_dir / "tokenizer.json"
        try:
            tokenizer_json = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        return cls(tokenizer_json, vocab_size=vocab_size, eos_token_ids=eos_token_ids)

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the start of an answer. Raises InvalidRequest."""
        with self._lock:
            if (compiled := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy(), self._end_mask)

    def check(self, grammar: Grammar) -> None:
        """Raises InvalidRequest for a grammar that cannot be compiled; remembers one that can."""
        self.compile(grammar)

    def _read_tokenizer(
        self, tokenizer_json: bytes, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        try:
            self._tokenizer = LLTokenizer(
                tokenizer_json.decode(), n_vocab=vocab_size, eos_token=list(eos_token_ids)
            )
        except ValueError as error:
            self._problem = f"the model's tokenizer cannot be constrained: {error}"

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._tokenizer is None:
            raise _refusal(self._problem)
        matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refusal(f"{grammar.kind} refused: {_reason(matcher.get_error())}")
        return matcher


def _reason(error: str) -> str:
    """The library's own, but for the one that only its embedder understands."""
    if "initial_lexer_fuel" in error:
        return f"too complex, it takes more than {MAX_COMPILE_STEPS} steps to compile"
    return error


def _source(grammar: Grammar) -> str:
    """In the library's own notation."""
    match grammar.kind:
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(_regex(grammar.text))
        case GrammarKind.JSON_SCHEMA:
            return _json_grammar(_schema(grammar.text))
        case GrammarKind.JSON_OBJECT:
            return _json_grammar({"type": "object"})


def _regex(text: str) -> str:
    num_backslashes = len(text) - len(text.rstrip("\\"))
    if num_backslashes % 2:  # the library would drop it
        raise _refusal("regex refused: incomplete escape at its end")
    return text


def _json_grammar(schema: Json) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema),
            overrides={"whitespace_flexible": True, "whitespace_pattern": WHITESPACE},
        )
    except ValueError as error:
        raise _refusal(f"json_schema refused: {error}") from error


def _schema(text: str) -> Json:
    # Parsed here, because the library pastes the text into its own.
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"json_schema is not JSON: {error}") from error
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise _refusal("json_schema refused: must be an object or true")
    _check_patterns(schema)
    return schema


def _check_patterns(schema: Json) -> None:
    keys: set[str] = set()
    patterns: set[str] = set()
    for key, value in _members(schema):
        keys.add(key)
        if key in {"pattern", "format"} and isinstance(value, str):
            patterns.add(value)
        elif key == "patternProperties" and isinstance(value, dict):
            patterns |= value.keys()
    if len(patterns) > MAX_JOINED_PATTERNS and keys & _JOINING:
        joining = ", ".join(sorted(keys & _JOINING))
        size = f"{len(patterns)} different patterns and formats beside {joining}"
        raise _refusal(f"json_schema refused: {size}, limit {MAX_JOINED_PATTERNS}")


def _members(document: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  any JSON
    """Of all objects in it, however deep."""
    unseen = [document]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            yield from value.items()
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value


def _packed(token_ids: Sequence[int], vocab_size: int) -> PackedMask:
    allowed = np.zeros(vocab_size, bool)
    allowed[[i for i in token_ids if i < vocab_size]] = True
    return np.packbits(allowed, bitorder="little")


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest((FieldViolation(_FIELD, _one_line(reason)),))


def _one_line(text: str) -> str:
    line = " ".join(text.replace("<non-verbose/>", "").split())
    return line if len(line) <= MAX_REASON_CHARS else line[: MAX_REASON_CHARS - 1] + "…"
