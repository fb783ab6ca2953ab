"""Index tensors and masks of one step, computed once and reused by every layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.batch import BatchEntry

Slots = npt.NDArray[np.int64]
SlotIndex = slice | torch.Tensor
"""Rows of a layer's cache: a view where they are one run, else a gather."""

MAX_PADDING_RATIO = 2
"""Decode entries share a padded call while the longest has at most this many times the tokens."""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One prompt chunk: some rows of the flat batch, attending causally to their own request."""

    rows: slice
    start: int
    """Tokens of the request in the cache before the chunk."""
    stop: int
    """Tokens of the request in the cache up to and with the chunk."""
    index: SlotIndex
    """Slots of all these tokens."""
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """By sliding window; made by the first layer that needs it."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Entries of one token each, padded to the longest and computed in one call."""

    rows: slice
    lengths: torch.Tensor
    """[entry]: tokens of the request in the cache, including the new one."""
    max_length: int
    padded: bool
    index: SlotIndex
    """Slots of [entry, max_length], flat. Padding names the request's own first slot, so that what
    other requests left behind (NaN survives a mask) never gets near."""
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)


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
    """Lay the entries out flat.

    Raises:
        ValueError: an entry is empty or its block table too short.
    """
    _check(entries, block_size)
    chunks = [i for i, e in enumerate(entries) if len(e.token_ids) > 1]
    singles = [i for i, e in enumerate(entries) if len(e.token_ids) == 1]
    # Longest first; equal lengths keep the given order.
    singles.sort(key=lambda i: entries[i].kv_start - entries[i].stop)
    order = (*chunks, *singles)
    slots = [_slots(entries[i], block_size) for i in order]
    tokens = [np.asarray(entries[i].token_ids, dtype=np.int64) for i in order]
    positions = [np.arange(entries[i].start, entries[i].stop) for i in order]
    writes = [s[-len(t) :] for s, t in zip(slots, tokens, strict=True)]
    ends = np.cumsum([len(t) for t in tokens])
    sampled = [(i, end - 1) for i, end in zip(order, ends, strict=True) if entries[i].sample]
    return StepPlan(
        order=order,
        input_ids=_tensor(np.concatenate(tokens), device)[None],
        position_ids=_tensor(np.concatenate(positions), device)[None],
        write_index=_index(np.concatenate(writes), device),
        prefills=tuple(_prefill_spans([entries[i] for i in chunks], slots, device)),
        decodes=tuple(_decode_groups(slots[len(chunks) :], int(ends[-1]), device)),
        table=_paged_table([entries[i] for i in order], len(chunks), block_size, device),
        sampled=tuple(i for i, _ in sampled),
        sampled_rows=_tensor(np.array([row for _, row in sampled], dtype=np.int64), device),
    )


def _check(entries: Sequence[BatchEntry], block_size: int) -> None:
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


def _slots(entry: BatchEntry, block_size: int) -> Slots:
    """Of the tokens in the cache after the step, in order.

    Everything downstream counts from `kv_start`: masks compare tokens of one request with each
    other, and positions enter K before it is written.
    """
    first, last = entry.kv_start // block_size, -(-entry.stop // block_size)
    table = np.asarray(entry.block_ids[first:last], dtype=np.int64)
    slots = (table[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[entry.kv_start - first * block_size : entry.stop - first * block_size]


def _prefill_spans(
    chunks: Sequence[BatchEntry], slots: Sequence[Slots], device: str
) -> Iterator[PrefillSpan]:
    row = 0
    for chunk, chunk_slots in zip(chunks, slots, strict=False):
        rows = slice(row, row + len(chunk.token_ids))
        start, stop = chunk.start - chunk.kv_start, chunk.stop - chunk.kv_start
        yield PrefillSpan(rows, start, stop, _index(chunk_slots, device))
        row = rows.stop


def _decode_groups(slots: Sequence[Slots], num_rows: int, device: str) -> Iterator[DecodeGroup]:
    """Cut requests sorted by falling length into groups of similar length."""
    row = num_rows - len(slots)
    first = 0
    while first < len(slots):
        longest = len(slots[first])
        last = first
        while last < len(slots) and len(slots[last]) * MAX_PADDING_RATIO >= longest:
            last += 1
        rows = slice(row + first, row + last)
        yield _decode_group(slots[first:last], rows, device)
        first = last


def _decode_group(slots: Sequence[Slots], rows: slice, device: str) -> DecodeGroup:
    lengths = np.array([len(s) for s in slots], dtype=np.int64)
    max_length = int(lengths[0])
    table = np.empty((len(slots), max_length), dtype=np.int64)
    for line, request_slots in zip(table, slots, strict=True):
        line[: len(request_slots)] = request_slots
        line[len(request_slots) :] = request_slots[0]
    return DecodeGroup(
        rows=rows,
        lengths=_tensor(lengths, device),
        max_length=max_length,
        padded=int(lengths[-1]) < max_length,
        index=_index(table.reshape(-1), device),
    )


def _paged_table(
    entries: Sequence[BatchEntry], num_prefills: int, block_size: int, device: str
) -> PagedTable:
    num_blocks = [-(-entry.stop // block_size) for entry in entries]
    block_ids = np.zeros((len(entries), max(num_blocks)), dtype=np.int32)
    for line, entry, num in zip(block_ids, entries, num_blocks, strict=True):
        line[:num] = entry.block_ids[:num]
    stops = np.array([entry.stop for entry in entries], dtype=np.int32)
    return PagedTable(
        block_ids=_tensor(block_ids, device),
        starts=_tensor(np.array([e.kv_start for e in entries], dtype=np.int32), device),
        stops=_tensor(stops, device),
        rows=_tensor(np.cumsum([0, *(len(e.token_ids) for e in entries)], dtype=np.int32), device),
        max_stop=int(stops.max()),
        num_prefills=num_prefills,
        block_size=block_size,
    )


def _index(slots: Slots, device: str) -> SlotIndex:
    """A slice if the slots are one ascending run."""
    if slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return _tensor(slots, device)


def _tensor(values: npt.NDArray[Any], device: str) -> torch.Tensor:
    return torch.from_numpy(values).to(device)
