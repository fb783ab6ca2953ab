"""Steps and answers as bytes between the leader and a rank: typed, bounded, nothing to run.

A step is a fixed header, then little-endian int32 arrays in the order of `_Counts`.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams, StopParams
from engine.batch import BatchEntry, SampleSpec
from engine.ranks.errors import FrameError
from engine.ranks.pipeline import Cut, Piece

MAGIC = b"BatonStp"
VERSION = 1
MAX_ENTRIES = 65_536
"""Of one step; its pieces and micro-batches are no more than a few times as many."""

Ints = npt.NDArray[np.int32]
_INT = np.dtype("<i4")
_HEADER = struct.Struct("<8sHII")
"""Magic, version, CRC-32 of the rest, bytes of the rest."""
_ENTRY_COLUMNS = 6
_PIECE_COLUMNS = 3

_SAMPLED = SampleSpec(
    sampling=SamplingParams(),
    stop=StopParams(max_tokens=1),
    child_index=0,
    prompt_token_ids=(),
    output_token_ids=(),
)
"""Stands for any: a rank only has to know that logits are wanted, the leader samples."""


@dataclass(frozen=True, slots=True)
class Step:
    """What every rank of an instance has to know of one step."""

    entries: Sequence[BatchEntry]
    """Decoded ones have no key, and all the same SampleSpec where they have one."""
    pieces: Cut


class _Counts(NamedTuple):
    """Lengths of the arrays, in their order on the wire."""

    num_entries: int
    num_pieces: int
    num_micro_batches: int
    num_tokens: int
    num_blocks: int
    num_copies: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Integers of each array."""
        return (
            self.num_entries * _ENTRY_COLUMNS,
            self.num_pieces * _PIECE_COLUMNS,
            self.num_micro_batches,
            self.num_tokens,
            self.num_blocks,
            self.num_copies * 2,
        )


def encode_step(step: Step) -> bytes:
    """One message. Raises FrameError for numbers that no int32 holds."""
    entries, flat = step.entries, [piece for batch in step.pieces for piece in batch]
    arrays = [
        [_row(entry) for entry in entries],
        flat,
        [len(batch) for batch in step.pieces],
        [token for entry in entries for token in entry.token_ids],
        [block for entry in entries for block in entry.block_ids],
        [pair for entry in entries for pair in entry.copies],
    ]
    try:
        parts = [np.array(array, dtype=_INT) for array in arrays]
    except OverflowError as error:
        raise FrameError(f"step: {error}") from error
    body = np.array([len(part) for part in parts], dtype=_INT).tobytes()
    body += b"".join(part.tobytes() for part in parts)
    return _HEADER.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body


def decode_step(data: bytes) -> Step:
    """What `encode_step` wrote. Raises FrameError for anything else."""
    values = _values(data)
    counts = _counts(values)
    ends = list(accumulate(counts.sizes, initial=len(counts)))
    table, flat, sizes, tokens, blocks, copies = (
        values[start:stop] for start, stop in pairwise(ends)
    )
    entries = _entries(table.reshape(-1, _ENTRY_COLUMNS), (tokens, blocks, copies.reshape(-1, 2)))
    pieces = [Piece(*row) for row in flat.reshape(-1, _PIECE_COLUMNS).tolist()]
    _check_pieces(entries, pieces)
    return Step(entries, tuple(map(tuple, _runs(pieces, sizes, "pieces"))))


def _row(entry: BatchEntry) -> tuple[int, ...]:
    return (
        entry.start,
        entry.kv_start,
        entry.sample is not None,
        len(entry.token_ids),
        len(entry.block_ids),
        len(entry.copies),
    )


def _values(data: bytes) -> Ints:
    if len(data) < _HEADER.size:
        raise FrameError(f"step: {len(data)} bytes, less than a header")
    magic, version, checksum, num_bytes = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if magic != MAGIC or version != VERSION:
        raise FrameError(f"step: {magic!r} version {version}, not {MAGIC!r} version {VERSION}")
    if len(body) != num_bytes or num_bytes % _INT.itemsize or zlib.crc32(body) != checksum:
        raise FrameError(f"step: {len(body)} of {num_bytes} bytes, or damaged")
    return np.frombuffer(body, dtype=_INT)


def _counts(values: Ints) -> _Counts:
    num_counts = len(_Counts._fields)
    if len(values) < num_counts:
        raise FrameError(f"step: {len(values)} integers, less than the {num_counts} counts")
    counts = _Counts(*values[:num_counts].tolist())
    if min(counts) < 0 or counts.num_entries > MAX_ENTRIES:
        raise FrameError(f"step: {counts}")
    if num_counts + sum(counts.sizes) != len(values):
        raise FrameError(f"step: {len(values)} integers do not hold {counts}")
    return counts


def _entries(table: Ints, arrays: tuple[Ints, Ints, Ints]) -> list[BatchEntry]:
    columns = zip(
        table.tolist(),
        *(_runs(a.tolist(), table[:, 3 + i], "an entry's") for i, a in enumerate(arrays)),
        strict=True,
    )
    return [
        BatchEntry(
            key="",
            token_ids=tokens,
            start=row[0],
            kv_start=row[1],
            sample=_SAMPLED if row[2] else None,
            block_ids=blocks,
            copies=[(source, target) for source, target in copies],
        )
        for row, tokens, blocks, copies in columns
    ]


def _runs(values: list, sizes: Ints, what: str) -> list[list]:  # type: ignore[type-arg]
    """The values cut into runs of these sizes."""
    ends = list(accumulate(sizes.tolist(), initial=0))
    if (len(sizes) and int(sizes.min()) < 0) or ends[-1] != len(values):
        raise FrameError(f"step: {what} sizes do not add up to {len(values)}")
    return [values[start:stop] for start, stop in pairwise(ends)]


def _check_pieces(entries: Sequence[BatchEntry], pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if not 0 <= piece.entry < len(entries):
            raise FrameError(f"step: {piece} of {len(entries)} entries")
        if not 0 <= piece.start < piece.stop <= len(entries[piece.entry].token_ids):
            raise FrameError(f"step: {piece} is no part of its entry")


class Spent(NamedTuple):
    """When a rank computed one micro-batch: seconds of the host's monotonic clock."""

    began_s: float
    ended_s: float


class Answer(NamedTuple):
    """What a rank says after a step or while it starts."""

    spent: tuple[Spent, ...] = ()
    error: str | None = None


def encode_answer(answer: Answer) -> bytes:
    """One message."""
    return json.dumps({"spent": answer.spent, "error": answer.error}).encode()


def decode_answer(data: bytes) -> Answer:
    """What `encode_answer` wrote. Raises FrameError for anything else."""
    try:
        table = json.loads(data)
        spent = tuple(Spent(float(began_s), float(ended_s)) for began_s, ended_s in table["spent"])
        error = table["error"]
        if error is not None and not isinstance(error, str):
            raise TypeError(f"error is a {type(error).__name__}")
    except (ValueError, TypeError, KeyError) as error:
        raise FrameError(f"answer: {type(error).__name__}: {error}") from error
    return Answer(spent, error)
