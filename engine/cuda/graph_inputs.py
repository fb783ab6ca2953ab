"""What a captured decode step reads: fixed memory that every step fills anew."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.batch import BatchEntry
from engine.step_plan import DecodeGroup, PagedTable, StepPlan

SMALL_BUCKETS = (1, 2, 4)
BUCKET_STEP = 8
"""From here on a step computes at most 7 rows for nothing, at most half of them."""


def buckets_up_to(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture: 1, 2, 4, 8, 16, 24, ... and the largest itself."""
    steps = range(BUCKET_STEP, max_rows, BUCKET_STEP)
    return (*(size for size in SMALL_BUCKETS if size < max_rows), *steps, max_rows)


def bucket_for(num_rows: int, buckets: Sequence[int]) -> int | None:
    """The smallest that holds them."""
    return next((bucket for bucket in buckets if bucket >= num_rows), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphShape:
    """What does not change from step to step."""

    block_size: int
    max_blocks: int
    """Of one entry: the width of the block table."""
    scratch_block: int
    """Where rows that pad a bucket write; nobody reads it."""

    def num_words(self, bucket: int) -> int:
        """Memory for a bucket, in int64."""
        return 4 * bucket + -(-bucket * self.max_blocks // 2)

    def fits(self, entries: Sequence[BatchEntry]) -> bool:
        """Whether a graph can compute them: one token each, sampled after each, and no longer than
        the table."""
        longest = self.max_blocks * self.block_size
        return all(
            len(e.token_ids) == 1 and e.sample is not None and e.stop <= longest for e in entries
        )


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """One bucket's inputs as views of one buffer, so that a step copies once.

    Block tables come last and block by block: what the longest entry does not reach need not be
    copied.
    """

    words: torch.Tensor
    """All of it, int64."""
    ids: torch.Tensor
    """[3, row] of int64: token, position, slot."""
    ends: torch.Tensor
    """[2, row] of int32: the first token still there, and one past the last."""
    block_ids: torch.Tensor
    """[block, row] of int32."""


def views(buffer: torch.Tensor, shape: GraphShape, bucket: int) -> GraphInputs:
    """Lay a bucket out in the first words of an int64 buffer."""
    words = buffer[: shape.num_words(bucket)]
    table = words[4 * bucket :].view(torch.int32)[: bucket * shape.max_blocks]
    return GraphInputs(
        words,
        words[: 3 * bucket].view(3, bucket),
        words[3 * bucket : 4 * bucket].view(torch.int32).view(2, bucket),
        table.view(shape.max_blocks, bucket),
    )


def fill(inputs: GraphInputs, shape: GraphShape, entries: Sequence[BatchEntry]) -> int:
    """Describe a step in host memory; rows beyond the entries pad. Returns the words to copy."""
    num_rows, bucket = len(entries), inputs.ids.shape[1]
    ids, ends, block_ids = inputs.ids.numpy(), inputs.ends.numpy(), inputs.block_ids.numpy()
    ids[:, num_rows:] = [[0], [0], [shape.scratch_block * shape.block_size]]
    ends[:, num_rows:] = [[0], [1]]
    block_ids[0, num_rows:] = shape.scratch_block
    ids[0, :num_rows] = [entry.token_ids[0] for entry in entries]
    ids[1, :num_rows] = [entry.start for entry in entries]
    ends[0, :num_rows] = [entry.kv_start for entry in entries]
    ends[1, :num_rows] = [entry.stop for entry in entries]
    num_blocks = 1
    for row, entry in enumerate(entries):
        used = -(-entry.stop // shape.block_size)
        table = np.asarray(entry.block_ids[:used], dtype=np.int32)
        block_ids[:used, row] = table
        ids[2, row] = int(table[-1]) * shape.block_size + entry.start % shape.block_size
        num_blocks = max(num_blocks, used)
    return 4 * bucket + -(-bucket * num_blocks // 2)


def plan_of(inputs: GraphInputs, shape: GraphShape) -> StepPlan:
    """The step that a graph computes, for as many rows as the bucket has."""
    bucket = inputs.ids.shape[1]
    device = inputs.ids.device
    rows = torch.arange(bucket + 1, dtype=torch.int32, device=device)
    table = PagedTable(
        block_ids=inputs.block_ids.t(),
        starts=inputs.ends[0],
        stops=inputs.ends[1],
        rows=rows,
        # Kernels choose their grid by it: the largest that may come.
        max_stop=shape.max_blocks * shape.block_size,
        num_prefills=0,
        block_size=shape.block_size,
    )
    # Says that there are answers; only kernels that read the table can be captured, and no other
    # asks for the entries.
    group = DecodeGroup(slice(0, bucket), (), shape.block_size, str(device))
    return StepPlan(
        order=tuple(range(bucket)),
        input_ids=inputs.ids[0][None],
        position_ids=inputs.ids[1][None],
        write_index=inputs.ids[2],
        prefills=(),
        decodes=(group,),
        table=table,
        sampled=tuple(range(bucket)),
        sampled_rows=rows[:bucket].long(),
    )
