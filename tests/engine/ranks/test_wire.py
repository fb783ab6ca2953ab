"""What crosses between ranks comes out as it went in, or is refused."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import BatchEntry
from engine.ranks.errors import FrameError
from engine.ranks.pipeline import Piece, cut
from engine.ranks.wire import (
    Answer,
    Spent,
    Step,
    decode_answer,
    decode_step,
    encode_answer,
    encode_step,
)
from tests.engine.tiny import sample_spec

INTS = st.integers(0, 2**31 - 1)


@st.composite
def batch_entries(draw: st.DrawFn) -> BatchEntry:
    return BatchEntry(
        key=draw(st.text(max_size=3)),
        token_ids=draw(st.lists(INTS, min_size=1, max_size=90)),
        start=draw(INTS),
        kv_start=draw(INTS),
        block_ids=draw(st.lists(st.integers(-1, 2**31 - 1), max_size=20)),
        copies=draw(st.lists(st.tuples(INTS, INTS), max_size=3)),
        sample=sample_spec() if draw(st.booleans()) else None,
    )


@st.composite
def steps(draw: st.DrawFn) -> Step:
    entries = draw(st.lists(batch_entries(), min_size=1, max_size=5))
    pieces = cut([len(entry.token_ids) for entry in entries], draw(st.integers(1, 4)))
    return Step(entries, pieces)


def told(entries: Sequence[BatchEntry]) -> list[tuple[object, ...]]:
    """What a rank has to know."""
    return [
        (
            list(entry.token_ids),
            entry.start,
            entry.kv_start,
            list(entry.block_ids),
            list(entry.copies),
            entry.sample is not None,
        )
        for entry in entries
    ]


@given(step=steps())
def test_round_trip(step: Step) -> None:
    got = decode_step(encode_step(step))
    assert told(got.entries) == told(step.entries)
    assert got.pieces == step.pieces


@given(step=steps(), data=st.data())
def test_damage_is_noticed(step: Step, data: st.DataObject) -> None:
    message = bytearray(encode_step(step))
    at = data.draw(st.integers(0, len(message) - 1))
    if data.draw(st.booleans()):
        message[at] ^= data.draw(st.integers(1, 255))
    else:
        del message[at:]
    with pytest.raises(FrameError):
        decode_step(bytes(message))


@given(data=st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_step(data)


ENTRY = BatchEntry(key="", token_ids=(1, 2, 3), start=0, block_ids=(0,), sample=None)
WRONG = [
    # id                    pieces               entry       message
    ("no such entry", Piece(1, 0, 3), ENTRY, "of 1 entries"),
    ("empty piece", Piece(0, 2, 2), ENTRY, "no part"),
    ("beyond the entry", Piece(0, 0, 4), ENTRY, "no part"),
]


@pytest.mark.parametrize(
    ("piece", "entry", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_steps_that_cannot_be(piece: Piece, entry: BatchEntry, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        decode_step(encode_step(Step([entry], ((piece,),))))


def test_a_number_too_large_is_refused() -> None:
    entry = BatchEntry(key="", token_ids=(2**31,), start=0, block_ids=(0,), sample=None)
    with pytest.raises(FrameError):
        encode_step(Step([entry], ((Piece(0, 0, 1),),)))


@given(
    spent=st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9))),
    error=st.none() | st.text(max_size=20),
)
def test_answers_round_trip(spent: list[tuple[float, float]], error: str | None) -> None:
    answer = Answer(tuple(Spent(*pair) for pair in spent), error)
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"spent": 1, "error": null}',
        b'{"spent": [], "error": 3}',
        b"\xff",
    ],
)
def test_answers_that_are_none(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_answer(data)
