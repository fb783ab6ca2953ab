"""Which slots of the paged cache hold which tokens, and copies of those slots in this process."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.cpu.copy_kernels import are_inside, copy_runs

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]


class Runs(NamedTuple):
    """Tokens of a payload that lie in consecutive slots; as few runs as can be, in token order."""

    slots: Int64s
    """[run], the first slot of each."""
    places: Int64s
    """[run], its first token, counted from the payload's first."""
    lengths: Int64s
    """[run], in tokens."""


class Copier(Protocol):
    """Moves whole tokens between the cache and payloads [layer and k/v, token, byte].

    `layers` are numbered from the cache's first. Returns when the bytes are where they belong.
    """

    def read(self, layers: slice, runs: Runs, out: Bytes) -> None:
        """Fill `out` from the slots."""
        ...

    def write(self, layers: slice, runs: Runs, payload: Bytes) -> None:
        """Fill the slots; `payload` may be read-only and unaligned."""
        ...


class HostCopier:
    """Between memory and memory, in one call of a kernel for all layers and runs."""

    def __init__(self, data: torch.Tensor) -> None:
        """`data` is [layer, k/v, slot, head, dim]."""
        self._bytes = token_bytes(data).numpy()

    def read(self, layers: slice, runs: Runs, out: Bytes) -> None:
        """Fill `out`, whose tokens may lie apart, from the slots."""
        copy_rows(out, self._planes(layers), Runs(runs.places, runs.slots, runs.lengths))

    def write(self, layers: slice, runs: Runs, payload: Bytes) -> None:
        """Fill the slots; the payload's tokens may lie apart."""
        copy_rows(self._planes(layers), payload, runs)

    def _planes(self, layers: slice) -> Bytes:
        picked = self._bytes[layers]
        return picked.reshape(picked.shape[0] * 2, *picked.shape[2:])


def copy_rows(target: Bytes, source: Bytes, runs: tuple[Int64s, Int64s, Int64s]) -> None:
    """Copy in every plane, for each of `runs` (first row in `target`, in `source`, number of rows),
    so many rows.

    Both are [plane, row, byte], the bytes of a row adjacent. Raises ValueError for what lies
    outside of them: the kernel would not notice.
    """
    if not target.flags.writeable:
        raise ValueError("what is to be filled is read-only")
    if target.shape[::2] != source.shape[::2]:
        raise ValueError(f"rows of {source.shape} do not fit {target.shape}")
    if not target.size or not source.size:
        return
    if target.strides[2] != 1 or source.strides[2] != 1:
        raise ValueError("the bytes of a row are not adjacent")
    targets, sources, lengths = runs
    for array, firsts in ((target, targets), (source, sources)):
        if not are_inside(firsts, lengths, array.shape[1]):
            raise ValueError(f"rows outside of {array.shape[1]}")
    num_planes, _, row_bytes = target.shape
    copy_runs(_rows(target), _rows(source), (targets, sources, lengths), num_planes, row_bytes)


def _rows(array: Bytes) -> tuple[int, int, int]:
    return array.ctypes.data, array.strides[0], array.strides[1]


def slot_runs(block_ids: Sequence[int], tokens: range, *, block_size: int, num_blocks: int) -> Runs:
    """Where the request's `tokens` are in a cache of so many blocks.

    Raises ValueError for tokens beyond the table and for blocks that there are not.
    """
    if tokens.step != 1 or not 0 <= tokens.start <= tokens.stop:
        raise ValueError(f"{tokens} is not a run of token positions")
    if tokens.stop > len(block_ids) * block_size:
        raise ValueError(f"tokens up to {tokens.stop} in {len(block_ids)} blocks of {block_size}")
    if not tokens:
        return Runs(*np.zeros((3, 0), np.int64))
    first, skipped = divmod(tokens.start, block_size)
    last = -(-tokens.stop // block_size)
    ids = np.array(block_ids[first:last], np.int64)
    if ids.min() < 0 or ids.max() >= num_blocks:
        raise ValueError(f"blocks {ids.min()} to {ids.max()} are not all in {num_blocks}")
    slots = ids * block_size
    places = np.arange(-skipped, len(tokens), block_size)
    slots[0] += skipped
    places[0] = 0
    return _joined(slots, places, len(tokens))


def _joined(slots: Int64s, places: Int64s, num_tokens: int) -> Runs:
    """One run for each sequence of neighbours; given is one for each block."""
    lengths = np.diff(places, append=num_tokens)
    begins = np.ones(len(slots), bool)
    np.not_equal(slots[1:], slots[:-1] + lengths[:-1], out=begins[1:])
    places = places[begins]
    return Runs(slots[begins], places, np.diff(places, append=num_tokens))


def check_layers(layers: range, num_layers: int) -> None:
    """Raise ValueError for what is no run of the layers."""
    if layers.step != 1 or not 0 <= layers.start <= layers.stop <= num_layers:
        raise ValueError(f"{layers} is not a run of the {num_layers} layers")


def payload_rows(payload: memoryview, num_layers: int, num_tokens: int, row_bytes: int) -> Bytes:
    """A payload as [layer and k/v, token, byte], sharing its memory.

    Raises ValueError where it has not exactly so many bytes.
    """
    got = np.frombuffer(payload, dtype=np.uint8)
    want = num_layers * 2 * num_tokens * row_bytes
    if got.size != want:
        raise ValueError(f"payload of {got.size} bytes for KV of {want} bytes")
    return got.reshape(num_layers * 2, num_tokens, row_bytes)


def token_bytes(data: torch.Tensor) -> torch.Tensor:
    """The cache as bytes [layer, k/v, slot, byte], sharing its memory: only bytes matter here,
    and numpy knows no bfloat16."""
    return data.view(torch.uint8).flatten(start_dim=3)
