"""One rank's part of the model and of its KV, made alike in the leader and in every child."""

from collections.abc import Callable

import torch
from torch.distributed.distributed_c10d import Store

from core.clock import Clock, MonotonicClock
from core.model_spec import ModelSpec
from core.parallel import shard_of
from engine.kv_cache import KvCache, kv_bytes
from engine.ranks.atomics import have_sleep
from engine.ranks.group import RankGroup
from engine.ranks.shared_kv import map_shared
from engine.ranks.shared_sum import SharedSum, sums_bytes
from engine.ranks.spec import DEVICE, RankFiles, RankSpec
from engine.ranks.stage import Stage
from engine.sharding import load_shard


def kv_bytes_of(spec: RankSpec, model: ModelSpec) -> int:
    """What the rank's KV takes."""
    shard = shard_of(model, spec.place)
    return kv_bytes(model, shard, num_blocks=spec.num_blocks, block_size=spec.block_size)


def kv_cache_of(spec: RankSpec, model: ModelSpec, memory_fd: int) -> KvCache:
    """The rank's KV in a shared file of `kv_bytes_of` bytes, for whichever process asks."""
    return KvCache(
        model,
        num_blocks=spec.num_blocks,
        block_size=spec.block_size,
        shard=shard_of(model, spec.place),
        memory=map_shared(memory_fd, kv_bytes_of(spec, model)),
    )


def load_stage(
    spec: RankSpec, store: Store, files: RankFiles, has_ended: Callable[[], bool]
) -> Stage:
    """Meet the other ranks, then load; blocks.

    `has_ended` says of a rank that is waited for in a step whether it is known to be gone.

    Raises:
        GroupBroken: some rank did not come.
        ModelError: the model cannot be used, or not be split so.
    """
    torch.set_num_threads(spec.num_threads)
    place, clock = spec.place, MonotonicClock()
    sums = _sums(spec, files.sums, has_ended, clock)
    group = RankGroup(place, store, spec.timeout_s, sums)
    loaded = load_shard(
        spec.model_dir,
        dtype=spec.dtype,
        device=DEVICE,
        place=place,
        all_reduce=group.all_reduce,
    )
    cache = kv_cache_of(spec, loaded.spec, files.kv)
    return Stage(loaded.spec, place, loaded.module, cache, group, clock)


def _sums(
    spec: RankSpec, sums_fd: int, has_ended: Callable[[], bool], clock: Clock
) -> SharedSum | None:
    """None where there is nothing to sum, or no way to wait for it."""
    tp = spec.layout.tp
    if tp == 1 or not have_sleep():
        return None
    memory = map_shared(sums_fd, sums_bytes(tp))
    return SharedSum(memory, spec.place.tp_rank, tp, spec.timeout_s, has_ended, clock)
