"""All ranks of a layout in one process: a thread per rank of a stage, stage after stage."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch

from core.parallel import ParallelLayout, RankPlace
from engine.attention import GatherBuffers, StepAttention
from engine.batch import BatchEntry
from engine.kernels import kernels_for
from engine.kv_cache import KvCache
from engine.sharding import AllReduce, LoadedShard, load_shard
from engine.step_plan import StepPlan, plan_step

NUM_BLOCKS = 16
BLOCK_SIZE = 16
RANK_TIMEOUT_S = 60.0  # a rank that raised leaves the others waiting; a step takes milliseconds


class Meeting:
    """Sums over threads, always in the order of the ranks."""

    def __init__(self, num_ranks: int) -> None:
        self._barrier = Barrier(num_ranks)
        self._given: list[torch.Tensor] = [torch.empty(0)] * num_ranks
        self.num_sums = 0

    def all_reduce(self, rank: int) -> AllReduce:
        """For one rank."""

        def reduce(tensor: torch.Tensor) -> None:
            assert tensor.is_contiguous()
            self._given[rank] = tensor.clone()
            self._barrier.wait(RANK_TIMEOUT_S)
            total = self._given[0].clone()
            for other in self._given[1:]:
                total += other
            self._barrier.wait(RANK_TIMEOUT_S)
            tensor.copy_(total)
            self.num_sums += rank == 0

        return reduce


def no_sum(_tensor: torch.Tensor) -> None:
    """Where a stage has one rank, there is nothing to add."""
    raise AssertionError("summed over a single rank")


def load_rank(
    directory: Path,
    layout: ParallelLayout,
    rank: int,
    all_reduce: AllReduce = no_sum,
    *,
    fast: bool = True,
) -> LoadedShard:
    """One rank, in float32 on the CPU."""
    place = RankPlace(layout=layout, rank=rank)
    return load_shard(
        directory, dtype="float32", device="cpu", place=place, all_reduce=all_reduce, fast=fast
    )


class Crew:
    """One instance's ranks and their caches."""

    def __init__(self, directory: Path, tp: int, pp: int) -> None:
        self.meetings = [Meeting(tp) for _ in range(pp)]
        self.shards = [
            load_rank(
                directory,
                ParallelLayout(tp=tp, pp=pp),
                rank,
                no_sum if tp == 1 else self.meetings[rank // tp].all_reduce(rank % tp),
            )
            for rank in range(tp * pp)
        ]
        self._stages = [self.shards[at : at + tp] for at in range(0, tp * pp, tp)]
        self._caches = {
            shard.place.rank: KvCache(
                shard.spec, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, shard=shard.shard
            )
            for shard in self.shards
        }

    def logits(self, entry: BatchEntry) -> torch.Tensor:
        """Of one step over one request: [sampled row, vocabulary]."""
        plan = plan_step([entry], BLOCK_SIZE, "cpu")
        states = plan.input_ids
        for stage in self._stages:
            outs = self._compute(stage, plan, states)
            states = outs[0]
            # What leaves a stage is the same on each of its ranks: summed in the same order.
            if not stage[0].place.is_last_stage:
                assert all(torch.equal(out, states) for out in outs)
        return torch.cat(outs, dim=-1)

    def _compute(
        self, stage: Sequence[LoadedShard], plan: StepPlan, states: torch.Tensor
    ) -> list[torch.Tensor]:
        with ThreadPoolExecutor(len(stage)) as pool:
            running = [pool.submit(self._run_rank, shard, plan, states) for shard in stage]
            return [rank.result(RANK_TIMEOUT_S) for rank in running]

    def _run_rank(self, shard: LoadedShard, plan: StepPlan, states: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)
        cache = self._caches[shard.place.rank]
        kernels = kernels_for("cpu", shard.spec.dtype)
        step = StepAttention(cache, plan, GatherBuffers(), _ignore, kernels)
        with torch.inference_mode():
            out = shard.module(states.clone(), plan.position_ids, plan.sampled_rows, step)
        assert isinstance(out, torch.Tensor)
        return out


def _ignore(_layer: int) -> None:
    pass
