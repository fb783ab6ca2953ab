"""Index tensors and masks of one step, computed once and reused by every layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from engine.batch import BatchEntry
from engine.packed_copy import to_device

A = TypeVar("A")
Slots = npt.NDArray[np.int64]
SlotIndex = slice | torch.Tensor
"""Rows of a layer's cache: a view where they are one run, else a gather."""

MAX_PADDING_RATIO = 2
"""Decode entries share a padded call while the longest has at most this many times the tokens."""


@dataclass(frozen=True)
class PrefillSpan:
    """One prompt chunk: some rows of the flat batch, attending causally to their own request.

    What is gathered is worked out by the first layer that asks: kernels that read the paged table
    never do.
    """

    rows: slice
    entry: BatchEntry
    block_size: int
    device: str
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """By sliding window; made by the first layer that needs it."""

    @property
    def start(self) -> int:
        """Tokens of the request in the cache before the chunk."""
        return self.entry.start - self.entry.kv_start

    @property
    def stop(self) -> int:
        """Tokens of the request in the cache up to and with the chunk."""
        return _num_cached(self.entry)

    @cached_property
    def index(self) -> SlotIndex:
        """Slots of all these tokens."""
        return _index(_slots(self.entry, self.block_size), self.device)


@dataclass(frozen=True)
class DecodeGroup:
    """Entries of one token each, padded to the longest and computed in one call.

    As with chunks, what is gathered is worked out when it is asked for.
    """

    rows: slice
    entries: Sequence[BatchEntry]
    """By falling length."""
    block_size: int
    device: str
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """Tokens of the longest in the cache, including the new one."""
        return _num_cached(self.entries[0])

    @property
    def padded(self) -> bool:
        """Whether any is shorter."""
        return _num_cached(self.entries[-1]) < self.max_length

    @cached_property
    def lengths(self) -> torch.Tensor:
        """[entry]: tokens of the request in the cache, including the new one."""
        lengths = np.array([_num_cached(entry) for entry in self.entries], dtype=np.int64)
        return to_device([lengths], self.device)[0]

    @cached_property
    def index(self) -> SlotIndex:
        """Slots of [entry, max_length], flat. Padding names the request's own first slot, so that
        what other requests left behind (NaN survives a mask) never gets near."""
        table = np.empty((len(self.entries), self.max_length), dtype=np.int64)
        for line, entry in zip(table, self.entries, strict=True):
            slots = _slots(entry, self.block_size)
            line[: len(slots)] = slots
            line[len(slots) :] = slots[0]
        return _index(table.reshape(-1), self.device)


@dataclass(frozen=True, slots=True)
class PagedTable:
    """Where the KV of every entry lies, in flat order, for kernels that read it there.

    Token p of entry e, by its position in the request, is in slot
    `block_ids[e, p // block_size] * block_size + p % block_size`.
    """

    block_ids: torch.Tensor
    """[entry, block] of int32, padded with 0."""
    starts: torch.Tensor
    """[entry] of int32: tokens before it are gone."""
    stops: torch.Tensor
    """[entry] of int32: tokens of the request after the step."""
    rows: torch.Tensor
    """[entry + 1] of int32: where each entry's rows begin in the flat batch, and its end."""
    max_stop: int
    num_prefills: int
    """The first entries are chunks; the others have one row each."""
    block_size: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's flat batch: prompt chunks first, then decode entries by falling length."""

    order: tuple[int, ...]
    """Entry numbers in the order of the flat batch."""
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    write_index: SlotIndex
    prefills: tuple[PrefillSpan, ...]
    decodes: tuple[DecodeGroup, ...]
    table: PagedTable
    sampled: tuple[int, ...]
    """Entry numbers with a SampleSpec, in flat order."""
    sampled_rows: torch.Tensor


def plan_step(entries: Sequence[BatchEntry], block_size: int, device: str) -> StepPlan:
    """Lay the entries out flat. Raises ValueError as `check_entries` does."""
    check_entries(entries, block_size)
    chunks = [i for i, e in enumerate(entries) if len(e.token_ids) > 1]
    singles = [i for i, e in enumerate(entries) if len(e.token_ids) == 1]
    # Longest first; equal lengths keep the given order.
    singles.sort(key=lambda i: -_num_cached(entries[i]))
    order = (*chunks, *singles)
    ordered = [entries[i] for i in order]
    arrays = _arrays(ordered, block_size)
    moved = _Arrays(*to_device(arrays, device))
    num_chunk_rows = int(arrays.rows[len(chunks)])
    return StepPlan(
        order=order,
        input_ids=moved.token_ids[None],
        position_ids=moved.positions[None],
        write_index=_run(arrays.slots) or moved.slots,
        prefills=tuple(_prefill_spans(ordered[: len(chunks)], block_size, device)),
        decodes=tuple(_decode_groups(ordered[len(chunks) :], num_chunk_rows, block_size, device)),
        table=_paged_table(moved, int(arrays.stops.max()), len(chunks), block_size),
        sampled=tuple(i for i in order if entries[i].sample is not None),
        sampled_rows=moved.sampled_rows,
    )


def check_entries(entries: Sequence[BatchEntry], block_size: int) -> None:
    """Raise ValueError if there is none, or one is empty or its block table too short."""
    if not entries:
        raise ValueError("a step needs at least one entry")
    for entry in entries:
        if not len(entry.token_ids):
            raise ValueError(f"entry {entry.key}: no input tokens")
        if entry.start < 0 or entry.stop > len(entry.block_ids) * block_size:
            raise ValueError(
                f"entry {entry.key}: tokens {entry.start} to {entry.stop} "
                f"in {len(entry.block_ids)} blocks of {block_size}"
            )
        if not 0 <= entry.kv_start <= entry.start:
            raise ValueError(
                f"entry {entry.key}: cached tokens {entry.kv_start} to {entry.start} are no range"
            )


class _Arrays(NamedTuple, Generic[A]):
    """What of a step every kernel reads, first in memory of the host and then on the device."""

    token_ids: A
    positions: A
    slots: A
    """Where each row's K and V are written."""
    sampled_rows: A
    block_ids: A
    starts: A
    stops: A
    rows: A


def _arrays(ordered: Sequence[BatchEntry], block_size: int) -> _Arrays[npt.NDArray[Any]]:
    counts = [len(entry.token_ids) for entry in ordered]
    rows = np.array([0, *accumulate(counts)], dtype=np.int32)
    stops = np.array([entry.stop for entry in ordered], dtype=np.int32)
    block_ids = _block_ids(ordered, block_size)
    entry_of_row = np.repeat(np.arange(len(ordered)), counts)
    # Row r of an entry is that far before the entry's end in the flat batch and in its own tokens.
    positions = np.arange(rows[-1]) + (stops - rows[1:])[entry_of_row]
    blocks = block_ids[entry_of_row, positions // block_size].astype(np.int64)
    token_ids = chain.from_iterable(entry.token_ids for entry in ordered)
    is_sampled = np.array([entry.sample is not None for entry in ordered])
    return _Arrays(
        token_ids=np.fromiter(token_ids, np.int64, len(positions)),
        positions=positions,
        slots=blocks * block_size + positions % block_size,
        sampled_rows=rows[1:][is_sampled].astype(np.int64) - 1,
        block_ids=block_ids,
        starts=np.array([entry.kv_start for entry in ordered], dtype=np.int32),
        stops=stops,
        rows=rows,
    )


def _block_ids(entries: Sequence[BatchEntry], block_size: int) -> npt.NDArray[np.int32]:
    num_blocks = [-(-entry.stop // block_size) for entry in entries]
    block_ids = np.zeros((len(entries), max(num_blocks)), dtype=np.int32)
    for line, entry, num in zip(block_ids, entries, num_blocks, strict=True):
        line[:num] = entry.block_ids[:num]
    return block_ids


def _paged_table(
    moved: _Arrays[torch.Tensor], max_stop: int, num_prefills: int, block_size: int
) -> PagedTable:
    return PagedTable(
        block_ids=moved.block_ids,
        starts=moved.starts,
        stops=moved.stops,
        rows=moved.rows,
        max_stop=max_stop,
        num_prefills=num_prefills,
        block_size=block_size,
    )


def _prefill_spans(
    chunks: Sequence[BatchEntry], block_size: int, device: str
) -> Iterator[PrefillSpan]:
    row = 0
    for chunk in chunks:
        rows = slice(row, row + len(chunk.token_ids))
        yield PrefillSpan(rows, chunk, block_size, device)
        row = rows.stop


def _decode_groups(
    singles: Sequence[BatchEntry], first_row: int, block_size: int, device: str
) -> Iterator[DecodeGroup]:
    """Cut requests sorted by falling length into groups of similar length."""
    lengths = [_num_cached(entry) for entry in singles]
    first = 0
    while first < len(singles):
        last = first
        while last < len(singles) and lengths[last] * MAX_PADDING_RATIO >= lengths[first]:
            last += 1
        rows = slice(first_row + first, first_row + last)
        yield DecodeGroup(rows, singles[first:last], block_size, device)
        first = last


def _num_cached(entry: BatchEntry) -> int:
    """Tokens of the request in the cache after the step."""
    return entry.stop - entry.kv_start


def _slots(entry: BatchEntry, block_size: int) -> Slots:
    """Of the tokens in the cache after the step, in order.

    Everything downstream counts from `kv_start`: masks compare tokens of one request with each
    other, and positions enter K before it is written.
    """
    first, last = entry.kv_start // block_size, -(-entry.stop // block_size)
    table = np.asarray(entry.block_ids[first:last], dtype=np.int64)
    slots = (table[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[entry.kv_start - first * block_size : entry.stop - first * block_size]


def _index(slots: Slots, device: str) -> SlotIndex:
    return _run(slots) or to_device([slots], device)[0]


def _run(slots: Slots) -> slice | None:
    """The slots as a slice, if they are one ascending run."""
    if slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return None
