"""Streams of servers as they are: with counts per chunk, with a total, with neither, and broken."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.errors import AnswerFailed, BadAnswer
from bench.load.offer import Arrival
from bench.load.openai import Dialect, StreamReader, words
from bench.load.outcome import Event, Tokens, Usage
from bench.load.sse import MAX_EVENT_BYTES, SseReader
from core.errors import PeerLost

ARRIVAL = Arrival(at_s=0.0, token_ids=(5, 6, 5), max_tokens=7)


def text(said: str, num_tokens: int | None = None) -> dict[str, Any]:
    chunk: dict[str, Any] = {"choices": [{"index": 0, "text": said, "finish_reason": None}]}
    if num_tokens is not None:
        chunk["usage"] = {"prompt_tokens": 3, "completion_tokens": num_tokens}
    return chunk


def total(num_tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}}


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}], "usage": None}


TOLD, GUESSED = Tokens(1), Tokens(1, is_told=False)
STREAMS: list[tuple[str, list[dict[str, Any]], list[Event]]] = [
    ("counts per chunk", [text("a", 1), text("b", 4), total(4)], [TOLD, Tokens(3), Usage(3, 4)]),
    ("text that lags", [text("", 1), text("ab", 2), text("c", 2)], [TOLD, TOLD]),
    ("a total at the end", [text("a"), text("b"), total(2)], [GUESSED, GUESSED, Usage(3, 2)]),
    ("a total with the last words", [text("a"), text("b", 3)], [GUESSED, GUESSED, Usage(3, 3)]),
    ("a total with the reason", [text("a"), text("", 3)], [GUESSED, Usage(3, 3)]),
    ("no counts at all", [text("a"), text(""), text("b")], [GUESSED, GUESSED]),
    (
        "a chat",
        [delta(role="assistant", content=""), delta(content="a"), delta(reasoning="b"), delta()],
        [GUESSED, GUESSED],
    ),
]


@pytest.mark.parametrize(("chunks", "want"), [c[1:] for c in STREAMS], ids=[c[0] for c in STREAMS])
def test_streams(chunks: list[dict[str, Any]], want: list[Event]) -> None:
    reader = StreamReader()
    stream = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    assert list(reader.feed(stream + b"data: [DONE]\n\n")) == want
    reader.end()


BROKEN = [
    (
        "an error",
        b'data: {"error": {"message": "out of memory"}}\n\n',
        AnswerFailed,
        "out of memory",
    ),
    ("no JSON", b"data: hello\n\n", BadAnswer, "hello"),
    ("no object", b"data: [1]\n\n", BadAnswer, "1"),
    ("no end", b"x" * (MAX_EVENT_BYTES + 1), BadAnswer, str(MAX_EVENT_BYTES)),
]


@pytest.mark.parametrize(
    ("stream", "error", "says"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN]
)
def test_broken_streams(stream: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        list(StreamReader().feed(stream))


def test_a_stream_that_ends_early_is_no_answer() -> None:
    reader = StreamReader()
    list(reader.feed(b'data: {"choices": [{"text": "a"}]}\n\n'))
    with pytest.raises(PeerLost, match="DONE"):
        reader.end()


STREAM = b": a comment\r\ndata: one\r\n\r\nid: 7\ndata:two\ndata: lines\n\n\n\ndata: last\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_events_are_the_same_however_bytes_are_cut(cuts: list[int]) -> None:
    reader, edges = SseReader(), [0, *cuts, len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert [e for piece in pieces for e in reader.feed(piece)] == [b"one", b"two\nlines", b"last"]


BODIES = [
    # id                dialect                          has                            has not
    ("all of it", {}, {"prompt": [5, 6, 5], "ignore_eos": True, "max_tokens": 7}, "messages"),
    ("text", {"is_text": True}, {"prompt": words([5, 6, 5])}, "messages"),
    ("no ignore_eos", {"ignore_eos": False}, {"stream": True}, "ignore_eos"),
    ("plain", {"usage_per_chunk": False}, {"stream_options": {"include_usage": True}}, "messages"),
    (
        "chat",
        {"api": "chat"},
        {"messages": [{"role": "user", "content": words([5, 6, 5])}]},
        "prompt",
    ),
]


@pytest.mark.parametrize(
    ("options", "has", "lacks"), [c[1:] for c in BODIES], ids=[c[0] for c in BODIES]
)
def test_bodies(options: dict[str, Any], has: dict[str, Any], lacks: str) -> None:
    body = Dialect(model="m", **options).body(ARRIVAL)
    assert body | has == body
    assert lacks not in body


def test_equal_tokens_are_equal_words() -> None:
    first, other, again = words([5, 6, 5]).split()
    assert first == again != other
