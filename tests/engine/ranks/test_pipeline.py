"""Micro-batches cover a step once, in an order that keeps every request causal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import BatchEntry
from engine.ranks.pipeline import (
    MICRO_BATCHES_PER_STAGE,
    MIN_MICRO_BATCH_TOKENS,
    Cut,
    Piece,
    cut,
    micro_batches,
)
from tests.engine.tiny import sample_spec

LEAST = MIN_MICRO_BATCH_TOKENS
CASES: list[tuple[str, list[int], int, Cut]] = [
    # id                         tokens pp  want
    ("one stage", [500, 1], 1, ((Piece(0, 0, 500), Piece(1, 0, 1)),)),
    ("few answers", [1, 1, 1], 4, ((Piece(0, 0, 1), Piece(1, 0, 1), Piece(2, 0, 1)),)),
    ("just too short", [2 * LEAST - 1], 2, ((Piece(0, 0, 2 * LEAST - 1),),)),
    ("just enough", [2 * LEAST], 2, ((Piece(0, 0, LEAST),), (Piece(0, LEAST, 2 * LEAST),))),
    (
        "a chunk beside answers",
        [2 * LEAST - 2, 1, 1],
        2,
        (
            (Piece(0, 0, LEAST),),
            (Piece(0, LEAST, 2 * LEAST - 2), Piece(1, 0, 1), Piece(2, 0, 1)),
        ),
    ),
    (
        "as many as stages can use",
        [4000],
        2,
        tuple((Piece(0, i * 1000, (i + 1) * 1000),) for i in range(4)),
    ),
]


@pytest.mark.parametrize(
    ("num_tokens", "pp", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_cut(num_tokens: list[int], pp: int, want: Cut) -> None:
    assert cut(num_tokens, pp) == want


def test_an_entry_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="entry 1 of the step: no input"):
        cut([3, 0, 1], pp=2)


@given(num_tokens=st.lists(st.integers(1, 300), min_size=1, max_size=70), pp=st.integers(1, 8))
def test_every_token_once_in_order(num_tokens: list[int], pp: int) -> None:
    pieces = [piece for batch in cut(num_tokens, pp) for piece in batch]
    covered = [(p.entry, token) for p in pieces for token in range(p.start, p.stop)]
    assert covered == [(i, token) for i, num in enumerate(num_tokens) for token in range(num)]


@given(num_tokens=st.lists(st.integers(1, 300), min_size=1, max_size=70), pp=st.integers(1, 8))
def test_micro_batches_are_worth_it_and_even(num_tokens: list[int], pp: int) -> None:
    batches = cut(num_tokens, pp)
    sizes = [sum(piece.stop - piece.start for piece in batch) for batch in batches]
    assert len(batches) <= (1 if pp == 1 else MICRO_BATCHES_PER_STAGE * pp)
    assert len(batches) == 1 or min(sizes) >= MIN_MICRO_BATCH_TOKENS
    assert max(sizes) - min(sizes) <= 1
    for batch in batches:
        entries = [piece.entry for piece in batch]
        assert len(set(entries)) == len(entries), "an entry twice: one cannot see the other"


@given(num_tokens=st.lists(st.integers(1, 150), min_size=1, max_size=6), pp=st.integers(1, 4))
def test_pieces_follow_each_other_and_only_the_last_samples(num_tokens: list[int], pp: int) -> None:
    entries = [
        BatchEntry(
            key=str(i),
            token_ids=tuple(range(num)),
            start=10 * i,
            block_ids=(i,),
            sample=sample_spec() if i % 2 else None,
            copies=((1, 2),),
        )
        for i, num in enumerate(num_tokens)
    ]
    parts = [part for batch in micro_batches(entries, cut(num_tokens, pp)) for part in batch]
    for entry in entries:
        own = [part for part in parts if part.key == entry.key]
        assert [token for part in own for token in part.token_ids] == list(entry.token_ids)
        assert [part.start for part in own] == [entry.start, *(part.stop for part in own[:-1])]
        assert [part.sample for part in own] == [None] * (len(own) - 1) + [entry.sample]
        assert all(part.block_ids == entry.block_ids and not part.copies for part in own)
