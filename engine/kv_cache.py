"""The paged KV tensor of one rank, and copies of token ranges out of and into it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from core.model_spec import DTYPE_BYTES, ModelSpec
from core.parallel import RankPlace, Shard, shard_of

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


Bytes = npt.NDArray[np.uint8]
Run = tuple[int, int]
"""First and one past the last of consecutive slots."""


class _Copier(Protocol):
    """Moves whole tokens between the cache and buffers shaped [layer, k/v, token, byte]."""

    def read(self, layers: slice, runs: Sequence[Run]) -> Bytes: ...

    def write(self, layers: slice, runs: Sequence[Run], payload: Bytes) -> None: ...


class KvMemory(Protocol):
    """An instance's KV, wherever its ranks keep it; all calls block. See `KvCache`."""

    @property
    def num_layers(self) -> int: ...
    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview: ...
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
        self._copier: _Copier = (
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
        runs = self._runs(block_ids, tokens)
        return self._copier.read(self._layer_slice(layers), runs).reshape(-1).data

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """Write what `gather` of the same layers and tokens returned, here or elsewhere."""
        shape = self._byte_shape(layers, tokens)
        got = np.frombuffer(payload, dtype=np.uint8)
        if got.size != np.prod(shape):
            raise ValueError(f"payload of {got.size} bytes for KV of {np.prod(shape)} bytes")
        runs = self._runs(block_ids, tokens)
        self._copier.write(self._layer_slice(layers), runs, got.reshape(shape))

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

    def _byte_shape(self, layers: range, tokens: range) -> tuple[int, int, int, int]:
        return len(layers), 2, len(tokens), self.payload_bytes(1, 1) // 2

    def _layer_slice(self, layers: range) -> slice:
        if layers.step != 1 or not 0 <= layers.start <= layers.stop <= self.num_layers:
            raise ValueError(f"{layers} is not a run of the {self.num_layers} layers")
        return slice(layers.start, layers.stop)

    def _runs(self, block_ids: Sequence[int], tokens: range) -> list[Run]:
        if tokens.step != 1 or not 0 <= tokens.start <= tokens.stop:
            raise ValueError(f"{tokens} is not a run of token positions")
        if tokens.stop > len(block_ids) * self.block_size:
            raise ValueError(
                f"tokens up to {tokens.stop} in {len(block_ids)} blocks of {self.block_size}"
            )
        return list(slot_runs(block_ids, tokens, self.block_size))


def slot_runs(block_ids: Sequence[int], tokens: range, block_size: int) -> Iterator[Run]:
    """The slots of `tokens` in order, as the fewest (start, stop) runs."""
    run_start = run_stop = -1
    position = tokens.start
    while position < tokens.stop:
        block, offset = divmod(position, block_size)
        num_tokens = min(block_size - offset, tokens.stop - position)
        slot = block_ids[block] * block_size + offset
        if slot != run_stop:
            if run_stop > run_start:
                yield run_start, run_stop
            run_start = slot
        run_stop = slot + num_tokens
        position += num_tokens
    if run_stop > run_start:
        yield run_start, run_stop


class HostCopier:
    """numpy copies, one per run; any dtype and any alignment of the payload."""

    def __init__(self, data: torch.Tensor) -> None:
        self._bytes = _token_bytes(data).numpy()

    def read(self, layers: slice, runs: Sequence[Run]) -> Bytes:
        """The runs, in order."""
        num_tokens = sum(stop - start for start, stop in runs)
        source = self._bytes[layers]
        out = np.empty((*source.shape[:2], num_tokens, source.shape[3]), dtype=np.uint8)
        done = 0
        for start, stop in runs:
            out[:, :, done : done + stop - start] = source[:, :, start:stop]
            done += stop - start
        return out

    def write(self, layers: slice, runs: Sequence[Run], payload: Bytes) -> None:
        """Fill the runs, in order."""
        target = self._bytes[layers]
        done = 0
        for start, stop in runs:
            target[:, :, start:stop] = payload[:, :, done : done + stop - start]
            done += stop - start


class DeviceCopier:
    """torch copies on a stream of their own, so that they overlap the compute stream.

    The caller names only slots that a finished step or layer wrote: no event is waited for here.
    """

    def __init__(self, data: torch.Tensor) -> None:
        self._bytes = _token_bytes(data)
        self._stream = (
            torch.cuda.Stream(data.device)  # type: ignore[no-untyped-call]
            if data.is_cuda
            else None
        )

    def read(self, layers: slice, runs: Sequence[Run]) -> Bytes:
        """The runs, in order; in pinned memory, which the device fills several times faster."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            picked = self._bytes[layers].index_select(2, self._slots(runs))
            out = torch.empty(picked.shape, dtype=torch.uint8, pin_memory=picked.is_cuda)
            out.copy_(picked, non_blocking=True)
            self._synchronize()
        return out.numpy()

    def write(self, layers: slice, runs: Sequence[Run], payload: Bytes) -> None:
        """Fill the runs, in order; on the device when this returns."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            # Through memory of our own: payloads may be read-only, which from_numpy warns about.
            given = torch.empty(payload.shape, dtype=torch.uint8, pin_memory=self._bytes.is_cuda)
            np.copyto(given.numpy(), payload)
            moved = given.to(self._bytes.device, non_blocking=True)
            self._bytes[layers].index_copy_(2, self._slots(runs), moved)
            self._synchronize()

    def _slots(self, runs: Sequence[Run]) -> torch.Tensor:
        slots = [slot for start, stop in runs for slot in range(start, stop)]
        return torch.tensor(slots, dtype=torch.int64, device=self._bytes.device)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _token_bytes(data: torch.Tensor) -> torch.Tensor:
    """The cache as bytes [layer, k/v, slot, byte], sharing its memory: only bytes matter here,
    and numpy knows no bfloat16."""
    return data.view(torch.uint8).flatten(start_dim=3)
