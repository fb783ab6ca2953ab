"""Random paged KV, and attention over it written as plainly as can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.attention import PagedKernel
from engine.batch import BatchEntry
from engine.step_plan import PagedTable, StepPlan, plan_step
from tests.engine.cuda.device import DEVICE

TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Of outputs of size 1: the last bits of each dtype."""


@dataclass(frozen=True, slots=True)
class Request:
    """One entry of a step."""

    num_rows: int
    start: int = 0
    """Tokens before the step's."""
    kv_start: int = 0


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What the tensors of a model look like."""

    num_heads: int = 4
    num_kv_heads: int = 2
    dim: int = 16
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Case:
    """A step's plan and tensors, with NaN wherever nothing is to be read."""

    plan: StepPlan
    entries: tuple[BatchEntry, ...]
    query: torch.Tensor
    kv: tuple[torch.Tensor, torch.Tensor]
    scale: float

    @property
    def table(self) -> PagedTable:
        """Of the step."""
        return self.plan.table

    def compute(self, kernel: PagedKernel, window: int | None = None) -> torch.Tensor:
        """What the kernel writes; NaN in the rows that it leaves."""
        num_heads, num_rows, dim = self.query.shape
        out = self.query.new_full((num_rows, num_heads, dim), float("nan"))
        kernel(self.query, self.kv, self.table, self.scale, window, out)
        return out

    def reference(self, window: int | None = None) -> torch.Tensor:
        """Every row of every entry, one after another, in float64."""
        lines: list[torch.Tensor] = []
        for entry in self.entries:
            for position in range(entry.start, entry.stop):
                lines.append(self._row(entry, len(lines), position, window))
        return torch.stack(lines)

    def _row(self, entry: BatchEntry, row: int, position: int, window: int | None) -> torch.Tensor:
        first = max(entry.kv_start, 0 if window is None else position - window + 1)
        slots = _slots(entry, self.table.block_size, range(first, position + 1))
        keys, values = (part[slots].double() for part in self.kv)
        query = self.query[:, row].double()
        grouped = query.view(keys.shape[1], -1, query.shape[-1])
        scores = torch.einsum("kgd,tkd->kgt", grouped, keys) * self.scale
        return torch.einsum("kgt,tkd->kgd", scores.softmax(-1), values).reshape(query.shape)


def make_case(
    requests: Sequence[Request], heads: Heads, block_size: int = 16, seed: int = 0
) -> Case:
    """Blocks in random order; only the tokens that a request has are not NaN."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = sum(-(-(r.start + r.num_rows) // block_size) for r in requests) + 2
    free = torch.randperm(num_blocks, generator=generator).tolist()
    entries = []
    for request in requests:
        stop = request.start + request.num_rows
        block_ids = tuple(free.pop() for _ in range(-(-stop // block_size)))
        entries.append(
            BatchEntry(
                key="request",
                token_ids=(0,) * request.num_rows,
                start=request.start,
                block_ids=block_ids,
                sample=None,
                kv_start=request.kv_start,
            )
        )
    plan = plan_step(entries, block_size, DEVICE)
    ordered = tuple(entries[i] for i in plan.order)
    kv = [_cache(ordered, heads, num_blocks * block_size, block_size, generator) for _ in range(2)]
    num_rows = sum(request.num_rows for request in requests)
    query = torch.randn(num_rows, heads.num_heads, heads.dim, generator=generator)
    # Models hand over rows first, seen with heads first.
    query = query.to(DEVICE, heads.dtype).transpose(0, 1)
    return Case(plan, ordered, query, (kv[0], kv[1]), 1 / math.sqrt(heads.dim))


def _cache(
    entries: Sequence[BatchEntry],
    heads: Heads,
    num_slots: int,
    block_size: int,
    generator: torch.Generator,
) -> torch.Tensor:
    cache = torch.full((num_slots, heads.num_kv_heads, heads.dim), float("nan"))
    for entry in entries:
        slots = _slots(entry, block_size, range(entry.kv_start, entry.stop))
        shape = (len(slots), *cache.shape[1:])
        cache[slots] = torch.randn(shape, generator=generator)
    return cache.to(DEVICE, heads.dtype)


def _slots(entry: BatchEntry, block_size: int, tokens: range) -> list[int]:
    return [entry.block_ids[p // block_size] * block_size + p % block_size for p in tokens]


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Up to the last bits of what was computed; a NaN is never close."""
    difference = (got.double() - want.to(got.device)).abs().max().item() if got.numel() else 0.0
    assert difference <= TOLERANCE[got.dtype], difference
