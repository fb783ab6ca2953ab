"""The paged KV tensor of one rank, and copies of token ranges out of and into it."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from core.model_spec import DTYPE_BYTES, ModelSpec
from core.parallel import RankPlace, Shard, shard_of
from engine.copies import (
    Bytes,
    Copier,
    HostCopier,
    Runs,
    check_layers,
    payload_rows,
    slot_runs,
)
from engine.cuda.copies import DeviceCopier

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class KvMemory(Protocol):
    """An instance's KV, wherever its ranks keep it; all calls block. See `KvCache`."""

    @property
    def num_layers(self) -> int: ...
    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview: ...
    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None: ...
    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None: ...


def kv_bytes(spec: ModelSpec, shard: Shard, *, num_blocks: int, block_size: int) -> int:
    """What a rank's cache takes."""
    values = 2 * len(shard.layers) * len(shard.kv_heads) * spec.head_dim
    return values * num_blocks * block_size * DTYPE_BYTES[spec.dtype]


class KvCache:
    """One rank's KV: one tensor [layer, 2, num_blocks * block_size, KV head, head_dim].

    `gather` and `scatter` may run in any thread beside a step, as long as nobody else writes the
    slots they name; both spend their time in copies that do not hold the GIL.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_blocks: int,
        block_size: int,
        device: str = "cpu",
        shard: Shard | None = None,
        memory: torch.Tensor | None = None,
    ) -> None:
        """`shard` is the rank's part of the model, by default all; `memory` zeroed bytes to live
        in, as many as `kv_bytes` says."""
        shard = shard or shard_of(spec, RankPlace())
        self.shard = shard
        self.num_layers = len(shard.layers)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = len(shard.kv_heads)
        self.head_dim = spec.head_dim
        self.dtype = spec.dtype
        shape = (self.num_layers, 2, num_blocks * block_size, self.num_kv_heads, self.head_dim)
        dtype = TORCH_DTYPES[spec.dtype]
        # Zeros, not empty: uninitialised memory may hold NaN, which a mask does not silence.
        self.data = (
            torch.zeros(shape, dtype=dtype, device=device)
            if memory is None
            else memory.view(dtype).view(shape)
        )
        self._copier: Copier = (
            HostCopier(self.data) if self.data.device.type == "cpu" else DeviceCopier(self.data)
        )

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [slot, KV head, dim] of one of the shard's layers, by its number in the model."""
        data = self.data[layer - self.shard.layers.start]
        return data[0], data[1]

    def payload_bytes(self, num_layers: int, num_tokens: int) -> int:
        """Size of the payload of `num_tokens` tokens in `num_layers` layers."""
        head_bytes = self.head_dim * DTYPE_BYTES[self.dtype]
        return num_layers * 2 * num_tokens * self.num_kv_heads * head_bytes

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
        own, runs = self._own(layers), self._runs(block_ids, tokens)
        self._copier.read(own, runs, self._rows(layers, tokens, out))

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """Write what `gather` of the same layers and tokens returned, here or elsewhere."""
        own, runs = self._own(layers), self._runs(block_ids, tokens)
        self._copier.write(own, runs, self._rows(layers, tokens, payload))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, target) in all layers: every source as it was before.

        In the calling thread and, on CUDA, on its current stream: in order with the steps.
        """
        targets = Counter(target for _, target in pairs)
        if twice := [target for target, times in targets.items() if times > 1]:
            raise ValueError(f"several blocks copied into one: {', '.join(map(str, twice))}")
        for block_id in (block_id for pair in pairs for block_id in pair):
            if not 0 <= block_id < self.num_blocks:
                raise ValueError(f"block {block_id} of {self.num_blocks} cannot be copied")
        blocks = self.data.view(self.num_layers, 2, self.num_blocks, -1)
        index = torch.tensor(pairs, dtype=torch.int64, device=self.data.device).reshape(-1, 2)
        blocks.index_copy_(2, index[:, 1], blocks.index_select(2, index[:, 0]))

    def _own(self, layers: range) -> slice:
        check_layers(layers, self.num_layers)
        return slice(layers.start, layers.stop)

    def _rows(self, layers: range, tokens: range, payload: memoryview) -> Bytes:
        return payload_rows(payload, len(layers), len(tokens), self.payload_bytes(1, 1) // 2)

    def _runs(self, block_ids: Sequence[int], tokens: range) -> Runs:
        return slot_runs(block_ids, tokens, block_size=self.block_size, num_blocks=self.num_blocks)
