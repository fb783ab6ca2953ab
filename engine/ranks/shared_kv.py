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
from engine.kv_cache import Bytes, KvCache, Run, slot_runs


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
        self._all = [_Rectangle(part) for part in parts]
        # Several ranks may hold the same heads, and the same bytes in them: one of them is read.
        firsts = {rectangle.corner: rectangle for rectangle in reversed(self._all)}
        self._distinct = list(firsts.values())

    def payload_bytes(self, num_layers: int, num_tokens: int) -> int:
        """Size of the payload of `num_tokens` tokens in `num_layers` layers."""
        return num_layers * 2 * num_tokens * self.num_kv_heads * self._head_bytes

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """KV of `tokens` (positions in the request), flat: [layer][k, v][token][head][dim]."""
        runs = self._runs(layers, block_ids, tokens)
        out = np.empty(self._shape(layers, tokens), dtype=np.uint8)
        for rectangle in self._distinct:
            rectangle.read(layers, runs, out)
        return out.reshape(-1).data

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """Write what `gather` of the same layers and tokens returned, here or elsewhere."""
        runs = self._runs(layers, block_ids, tokens)
        got, shape = np.frombuffer(payload, dtype=np.uint8), self._shape(layers, tokens)
        if got.size != np.prod(shape):
            raise ValueError(f"payload of {got.size} bytes for KV of {np.prod(shape)} bytes")
        for rectangle in self._all:
            rectangle.write(layers, runs, got.reshape(shape))

    def _shape(self, layers: range, tokens: range) -> tuple[int, ...]:
        return len(layers), 2, len(tokens), self.num_kv_heads, self._head_bytes

    def _runs(self, layers: range, block_ids: Sequence[int], tokens: range) -> list[Run]:
        if layers.step != 1 or not 0 <= layers.start <= layers.stop <= self.num_layers:
            raise ValueError(f"{layers} is not a run of the {self.num_layers} layers")
        if tokens.step != 1 or not 0 <= tokens.start <= tokens.stop:
            raise ValueError(f"{tokens} is not a run of token positions")
        if tokens.stop > len(block_ids) * self.block_size:
            raise ValueError(
                f"tokens up to {tokens.stop} in {len(block_ids)} blocks of {self.block_size}"
            )
        return list(slot_runs(block_ids, tokens, self.block_size))


class _Rectangle:
    """One rank's layers × heads, which are a part of payloads [layer, k/v, token, head, byte]."""

    def __init__(self, part: KvCache) -> None:
        self._layers = part.shard.layers
        heads = part.shard.kv_heads
        self._heads = slice(heads.start, heads.stop)
        # As bytes [layer, k/v, slot, head, byte]: numpy knows no bfloat16.
        self._bytes: Bytes = part.data.view(torch.uint8).numpy()

    @property
    def corner(self) -> tuple[int, int]:
        """Equal for ranks that hold the same."""
        return self._layers.start, self._heads.start

    def read(self, layers: range, runs: Sequence[Run], out: Bytes) -> None:
        """Fill its part of a payload."""
        here, there = self._both(layers)
        for run, place in _placed(runs):
            out[there, :, place, self._heads] = self._bytes[here, :, run]

    def write(self, layers: range, runs: Sequence[Run], payload: Bytes) -> None:
        """Take its part of a payload."""
        here, there = self._both(layers)
        for run, place in _placed(runs):
            self._bytes[here, :, run] = payload[there, :, place, self._heads]

    def _both(self, layers: range) -> tuple[slice, slice]:
        """The layers that are its own, counted from its first and from the payload's first."""
        first = max(layers.start, self._layers.start)
        last = max(first, min(layers.stop, self._layers.stop))
        own, payload = self._layers.start, layers.start
        return slice(first - own, last - own), slice(first - payload, last - payload)


def _placed(runs: Sequence[Run]) -> Iterator[tuple[slice, slice]]:
    """Each run of slots, and where it lies in the payload."""
    done = 0
    for start, stop in runs:
        yield slice(start, stop), slice(done, done + stop - start)
        done += stop - start


@contextmanager
def _anonymous_file() -> Iterator["IO[bytes]"]:
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("baton-ranks"), "r+b", buffering=0) as file:
            yield file
    else:
        # macOS has none; an unlinked file does as well, at the cost of the disk's room.
        with tempfile.TemporaryFile(buffering=0) as file:
            yield file
