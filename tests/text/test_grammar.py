"""What masks allow leads to answers that match, and to nothing else; bad grammars are refused."""

import json
import re
from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidRequest, ModelError
from core.request import Grammar, GrammarKind
from tests.text.vocabularies import byte_level
from text.grammar import MAX_COMPILED, MAX_JOINED_PATTERNS, MAX_REASON_CHARS, GrammarCompiler

RAW = byte_level()
VOCAB_SIZE = RAW.get_vocab_size()
EOS_TOKEN_ID = RAW.get_vocab()["<|a|>"]
PADDED_SIZE = VOCAB_SIZE + 45
"""Wider than the tokenizer, and no multiple of anything."""
DIGITS = Grammar(GrammarKind.REGEX, "[0-9]{3}")


@cache
def compiler() -> GrammarCompiler:
    """For the padded vocabulary."""
    return made()


def made(eos_token_ids: Sequence[int] = (EOS_TOKEN_ID,)) -> GrammarCompiler:
    tokenizer_json = RAW.to_str().encode()
    return GrammarCompiler(tokenizer_json, vocab_size=PADDED_SIZE, eos_token_ids=eos_token_ids)


def schema(value: object) -> Grammar:
    """A JSON schema."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


def regex(text: str) -> Grammar:
    """A regular expression."""
    return Grammar(GrammarKind.REGEX, text)


JSON_OBJECT = Grammar(GrammarKind.JSON_OBJECT)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "town": {"enum": ["Oslo", "Paris"]},
    },
    "required": ["name", "age", "town"],
    "additionalProperties": False,
}


def allowed(mask: npt.NDArray[np.uint8]) -> list[int]:
    """Token ids whose bit is set."""
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask, bitorder="little"))]


def matches(grammar: Grammar, text: str) -> bool:
    """Whether masks let an answer of this text through, byte by byte, and then let it end."""
    matcher = compiler().compile(grammar)
    for byte in text.encode():
        if byte not in allowed(matcher.mask()):  # in this vocabulary a byte is its own token id
            return False
        matcher.consume([byte])
    assert matcher.is_accepting == (EOS_TOKEN_ID in allowed(matcher.mask()))
    return matcher.is_accepting


MATCHES = [
    # id                       grammar                         matching          not matching
    ("regex", DIGITS, ["123"], ["12", "1234", "a12", ""]),
    ("regex with anchors", regex("^ab?$"), ["a", "ab"], ["b", "abb", "^a$"]),
    ("regex of alternatives", regex("yes|no"), ["yes", "no"], ["yesno", "y"]),
    ("regex with slashes", regex("a/b"), ["a/b"], ["a"]),
    ("regex beyond ASCII", regex("é+|😀"), ["éé", "😀"], ["e", "é😀"]),
    ("regex of nothing", regex(""), [""], ["a"]),
    ("any object", JSON_OBJECT, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{", "{a: 1}"]),
    (
        "schema",
        schema(PERSON),
        ['{"name": "Ada", "age": 36, "town": "Oslo"}', '{"name":"","age":0,"town":"Paris"}'],
        ["{}", '{"name": "Ada", "age": 151, "town": "Oslo"}', '{"name": "Augusta"'],
    ),
    ("schema: whitespace", schema(PERSON), ['{\n  "name": "A", "age": 1, "town": "Oslo"\n}'], []),
    ("schema: bounded whitespace", JSON_OBJECT, ["{" + " " * 64 + "}"], ["{" + " " * 65 + "}"]),
    ("schema true", schema(True), ["1", "[]", "null"], ["nil"]),
    (
        "schema that refers to itself",
        schema({"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#"}}}}),
        ["[]", "[[],[[]]]"],
        ["[1]", "[[]"],
    ),
]


@pytest.mark.parametrize(
    ("grammar", "good", "bad"), [m[1:] for m in MATCHES], ids=[m[0] for m in MATCHES]
)
def test_answers_match_as_a_whole(grammar: Grammar, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not matches(grammar, text)] == []
    assert [text for text in bad if matches(grammar, text)] == []


MANY_PATTERNS = [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(30)]
REFUSED = [
    # id                     grammar                        what the reason says
    ("open group", regex("("), "unclosed group"),
    ("look-ahead", regex("(?=a)b"), "look-around"),
    ("half an escape", regex("a\\"), "incomplete escape"),
    ("too large a regex", regex("(a|b|.)*" * 4000), "too big (limit for this grammar: 50000)"),
    ("too complex a regex", regex("(a|b|.)*" * 500), "takes more than 50000 steps to compile"),
    ("not JSON", Grammar(GrammarKind.JSON_SCHEMA, "{"), "not JSON"),
    ("empty", Grammar(GrammarKind.JSON_SCHEMA, ""), "not JSON"),
    ("JSON too deep", Grammar(GrammarKind.JSON_SCHEMA, "[" * 60_000), "not JSON"),
    ("pasted into the library's", Grammar(GrammarKind.JSON_SCHEMA, '{}},{"a":{}'), "not JSON"),
    ("not a schema", schema([]), "must be an object or true"),
    ("unknown type", schema({"type": "foo"}), "Invalid type: foo"),
    ("matches nothing", schema({"enum": []}), "Unsatisfiable"),
    ("not offered", schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
    ("remote reference", schema({"$ref": "http://example.com/a"}), "does not fetch"),
    ("reference to nothing", schema({"$ref": "#/$defs/a"}), "does not exist"),
    ("bad pattern", schema({"type": "string", "pattern": "("}), "unclosed group"),
    ("not a number", Grammar(GrammarKind.JSON_SCHEMA, '{"minimum": NaN}'), "refused"),
    (
        "too many patterns at once",
        schema({"allOf": MANY_PATTERNS}),
        f"30 different patterns and formats beside allOf, limit {MAX_JOINED_PATTERNS}",
    ),
    (
        "too many patterned properties",
        schema({"type": "object", "patternProperties": {f"^{i}a": {} for i in range(500)}}),
        "500 different patterns and formats beside patternProperties",
    ),
]


@pytest.mark.parametrize(
    ("grammar", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_bad_grammars_are_refused(grammar: Grammar, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        compiler().check(grammar)
    (violation,) = refused.value.violations
    assert violation.field == "sampling.grammar"
    assert reason in violation.description
    assert len(violation.description) <= MAX_REASON_CHARS
    assert "\n" not in violation.description


def test_many_patterns_that_never_meet_are_fine() -> None:
    fields = {f"f{i}": {"type": "string", "pattern": f"^a{{{i}}}$"} for i in range(60)}
    compiler().check(schema({"type": "object", "properties": fields}))


def test_when_nothing_else_is_left_only_the_end_is_allowed() -> None:
    ends = (EOS_TOKEN_ID, EOS_TOKEN_ID + 1)
    matcher = made(ends).compile(DIGITS)
    for byte in b"123":
        assert allowed(matcher.mask()) == list(b"0123456789")
        matcher.consume([byte])
    assert allowed(matcher.mask()) == list(ends)
    matcher.consume([EOS_TOKEN_ID])
    assert allowed(matcher.mask()) == list(ends)


@pytest.mark.parametrize("stray", [ord("a"), EOS_TOKEN_ID, VOCAB_SIZE + 3, PADDED_SIZE, 2**31])
def test_after_a_token_that_does_not_fit_only_the_end_is_allowed(stray: int) -> None:
    matcher = compiler().compile(DIGITS)
    matcher.consume([ord("1"), stray, ord("2")])
    assert allowed(matcher.mask()) == [EOS_TOKEN_ID]
    matcher.consume([ord("3")])
    assert allowed(matcher.mask()) == [EOS_TOKEN_ID]
    assert not matcher.is_accepting
    assert ord("1") in allowed(compiler().compile(DIGITS).mask()), "others start afresh"


def test_padding_and_special_tokens_are_never_allowed() -> None:
    mask = compiler().compile(regex("(.|\n)*")).mask()
    assert len(mask) == -(-PADDED_SIZE // 8)
    special = {RAW.token_to_id("<|b|>"), *range(VOCAB_SIZE, len(mask) * 8)}
    assert set(allowed(mask)) & special == set()
    assert {EOS_TOKEN_ID, *range(128)} <= set(allowed(mask))


def test_without_an_end_no_grammar() -> None:
    with pytest.raises(InvalidRequest, match=r"sampling\.grammar: .*no end-of-sequence token"):
        made(()).compile(DIGITS)


UNUSABLE = [
    # id                  tokenizer.json   vocabulary
    ("not a tokenizer", b"{}", PADDED_SIZE),
    ("fewer logits than tokens", RAW.to_str().encode(), 100),
]


@pytest.mark.parametrize(
    ("tokenizer_json", "vocab_size"), [u[1:] for u in UNUSABLE], ids=[u[0] for u in UNUSABLE]
)
def test_an_unusable_tokenizer_refuses_grammars(tokenizer_json: bytes, vocab_size: int) -> None:
    unusable = GrammarCompiler(tokenizer_json, vocab_size=vocab_size, eos_token_ids=(2,))
    with pytest.raises(InvalidRequest, match="tokenizer cannot be constrained"):
        unusable.check(DIGITS)


def test_a_folder_without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("empty")
    with pytest.raises(ModelError, match=r"cannot read .*tokenizer\.json"):
        GrammarCompiler.load(folder, vocab_size=10, eos_token_ids=(1,))


def test_forgotten_grammars_compile_again() -> None:
    """And matchers of one grammar share nothing."""
    first = compiler().compile(DIGITS)
    first.consume(list(b"12"))
    for number in range(MAX_COMPILED + 1):
        compiler().check(regex(f"x{number}"))
    second = compiler().compile(DIGITS)
    second.consume(list(b"1"))
    first.consume(list(b"3"))
    assert (first.is_accepting, second.is_accepting) == (True, False)


LIST = {"type": "array", "items": {"anyOf": [PERSON, {"type": "boolean"}]}, "maxItems": 3}
WALKS = [schema(PERSON), schema(LIST), regex("(a|é|😀){2,5}x?"), regex("[^b]{0,4}")]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WALKS), st.randoms(use_true_random=False))
def test_any_walk_over_allowed_tokens_matches(grammar: Grammar, random: Random) -> None:
    matcher = compiler().compile(grammar)
    output: list[int] = []
    while (token_id := random.choice(allowed(matcher.mask()))) != EOS_TOKEN_ID:
        output.append(token_id)
        matcher.consume([token_id])
    text = RAW.decode(output)
    if grammar.kind is GrammarKind.REGEX:
        assert re.fullmatch(grammar.text, text)
    else:
        assert_fits(json.loads(text), json.loads(grammar.text))


def assert_fits(value: object, wanted: dict[str, object]) -> None:
    """As far as the schemas above go."""
    if wanted == LIST:
        assert isinstance(value, list)
        assert len(value) <= 3
        for item in value:
            if not isinstance(item, bool):
                assert_fits(item, PERSON)
        return
    assert isinstance(value, dict)
    assert list(value) == ["name", "age", "town"]
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 150
    assert value["town"] in {"Oslo", "Paris"}
