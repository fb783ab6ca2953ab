"""Cuts a step into micro-batches, so that the stages of a pipeline compute at the same time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.batch import BatchEntry

MIN_MICRO_BATCH_TOKENS = 32
"""Below this a matrix product costs nearly the same for fewer rows: cutting would not pay."""
MICRO_BATCHES_PER_STAGE = 2
"""With m micro-batches, filling and draining idles a share (pp - 1) / (m + pp - 1) of each stage:
one per stage leaves nearly half, two a third; more make every product thinner."""


class Piece(NamedTuple):
    """Some consecutive input tokens of one entry of the step."""

    entry: int
    start: int
    """Counted within the entry's `token_ids`."""
    stop: int


Cut = tuple[tuple[Piece, ...], ...]
"""The pieces of each micro-batch, in the order in which the stages compute them."""


def cut(num_tokens: Sequence[int], pp: int) -> Cut:
    """Micro-batches over entries of so many input tokens each.

    Pieces of one entry stay in order and meet in no micro-batch: whatever a piece attends to is
    in each stage's cache before it, because a stage computes micro-batches one after the other.
    Raises ValueError for an entry without tokens: it would be in none of them.
    """
    if 0 in num_tokens:
        raise ValueError(f"entry {num_tokens.index(0)} of the step: no input tokens")
    total = sum(num_tokens)
    most = 1 if pp == 1 else MICRO_BATCHES_PER_STAGE * pp
    num = max(1, min(most, total // MIN_MICRO_BATCH_TOKENS))
    # As even as tokens allow: the slowest micro-batch sets the pace of all stages.
    ends = [total * (i + 1) // num for i in range(num)]
    return tuple(
        tuple(_between(num_tokens, start, stop))
        for start, stop in zip([0, *ends], ends, strict=False)
    )


def micro_batches(entries: Sequence[BatchEntry], pieces: Cut) -> list[list[BatchEntry]]:
    """What each micro-batch computes; copies of blocks are left out, they come before them all."""
    return [[_part(entries[piece.entry], piece) for piece in batch] for batch in pieces]


def _between(num_tokens: Sequence[int], start: int, stop: int) -> list[Piece]:
    """The pieces that cover tokens `start` to `stop` of all entries laid end to end."""
    pieces = []
    before = 0
    for entry, num in enumerate(num_tokens):
        piece = Piece(entry, max(start - before, 0), min(stop - before, num))
        if piece.start < piece.stop:
            pieces.append(piece)
        before += num
    return pieces


def _part(entry: BatchEntry, piece: Piece) -> BatchEntry:
    is_last = piece.stop == len(entry.token_ids)
    return replace(
        entry,
        token_ids=entry.token_ids[piece.start : piece.stop],
        start=entry.start + piece.start,
        # Only the last token's logits choose the next one.
        sample=entry.sample if is_last else None,
        copies=(),
    )
