"""KV memory that all ranks of an instance and its leader have mapped, and the KV they hold there.

The leader gathers and scatters for the whole instance without asking a rank: what it has scattered
before it sends a step is there when the step runs, and what a step wrote is there when it returned.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch

from core.model_spec import DTYPE_BYTES, ModelSpec
from engine.copies import Bytes, HostCopier, Runs, check_layers, payload_rows, slot_runs
from engine.kv_cache import KvCache


@contextmanager
def shared_file(num_bytes: int) -> Iterator[int]:
    """A file of zeros without a name: its descriptor, which children may inherit.

    Closed at the end; mappings stay, and the memory goes with the last of them.
    """
    with _anonymous_file() as file:
        os.ftruncate(file.fileno(), num_bytes)
        yield file.fileno()


def map_shared(descriptor: int, num_bytes: int) -> torch.Tensor:
    """The file's bytes, as long as the tensor or a view of it lives."""
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)


class SpreadKv:
    """The KV of a whole model over the caches of its ranks, as `KvCache` of one rank would have it.

    `gather` and `scatter` may run in any thread beside a step, as long as nobody else writes the
    slots they name.
    """

    def __init__(self, spec: ModelSpec, parts: Sequence[KvCache]) -> None:
        """`parts` cover every layer and KV head; all have the same blocks and are on the CPU."""
        self.num_layers = spec.num_layers
        self.num_blocks = parts[0].num_blocks
        self.block_size = parts[0].block_size
        self.num_kv_heads = spec.num_kv_heads
        self._head_bytes = spec.head_dim * DTYPE_BYTES[spec.dtype]
        self._all = [_Rectangle(part, self._head_bytes) for part in parts]
        # Several ranks may hold the same heads, and the same bytes in them: one of them is read.
        firsts = {rectangle.corner: rectangle for rectangle in reversed(self._all)}
        self._distinct = list(firsts.values())

    def payload_bytes(self, num_layers: int, num_tokens: int) -> int:
        """Size of the payload of `num_tokens` tokens in `num_layers` layers."""
        return num_layers * 2 * num_tokens * self.num_kv_heads * self._head_bytes

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """KV of `tokens` (positions in the request), flat: [layer][k, v][token][head][dim]."""
        out = np.empty(self.payload_bytes(len(layers), len(tokens)), np.uint8).data
        self.gather_into(layers, block_ids, tokens, out)
        return out

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        """What `gather` returns, into memory that has been touched before: new pages cost several
        times as much as the copy. Raises ValueError unless `out` is as large, and writable."""
        runs, rows = self._runs(layers, block_ids, tokens), self._rows(layers, tokens, out)
        for rectangle in self._distinct:
            rectangle.read(layers, runs, rows)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """Write what `gather` of the same layers and tokens returned, here or elsewhere."""
        runs, rows = self._runs(layers, block_ids, tokens), self._rows(layers, tokens, payload)
        for rectangle in self._all:
            rectangle.write(layers, runs, rows)

    def _rows(self, layers: range, tokens: range, payload: memoryview) -> Bytes:
        return payload_rows(payload, len(layers), len(tokens), self.payload_bytes(1, 1) // 2)

    def _runs(self, layers: range, block_ids: Sequence[int], tokens: range) -> Runs:
        check_layers(layers, self.num_layers)
        return slot_runs(block_ids, tokens, block_size=self.block_size, num_blocks=self.num_blocks)


class _Rectangle:
    """One rank's layers × heads: a part of payloads [layer and k/v, token, byte]."""

    def __init__(self, part: KvCache, head_bytes: int) -> None:
        self._layers = part.shard.layers
        heads = part.shard.kv_heads
        self._bytes = slice(heads.start * head_bytes, heads.stop * head_bytes)
        self._copier = HostCopier(part.data)

    @property
    def corner(self) -> tuple[int, int]:
        """Equal for ranks that hold the same."""
        return self._layers.start, self._bytes.start

    def read(self, layers: range, runs: Runs, out: Bytes) -> None:
        """Fill its part of a payload."""
        own, planes = self._both(layers)
        self._copier.read(own, runs, out[planes, :, self._bytes])

    def write(self, layers: range, runs: Runs, payload: Bytes) -> None:
        """Take its part of a payload."""
        own, planes = self._both(layers)
        self._copier.write(own, runs, payload[planes, :, self._bytes])

    def _both(self, layers: range) -> tuple[slice, slice]:
        """The layers that are its own, counted from its first; and their K and V in a payload."""
        first = max(layers.start, self._layers.start)
        last = max(first, min(layers.stop, self._layers.stop))
        own, payload = self._layers.start, layers.start
        return slice(first - own, last - own), slice(2 * (first - payload), 2 * (last - payload))


@contextmanager
def _anonymous_file() -> Iterator["IO[bytes]"]:
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("baton-ranks"), "r+b", buffering=0) as file:
            yield file
    else:
        # macOS has none; an unlinked file does as well, at the cost of the disk's room.
        with tempfile.TemporaryFile(buffering=0) as file:
            yield file
