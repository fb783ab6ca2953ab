"""One rank's part of the model and of its KV, made alike in the leader and in every child."""

import torch
from torch.distributed.distributed_c10d import Store

from core.clock import MonotonicClock
from core.model_spec import ModelSpec
from core.parallel import shard_of
from engine.kv_cache import KvCache, kv_bytes
from engine.ranks.group import RankGroup
from engine.ranks.shared_kv import map_shared
from engine.ranks.spec import DEVICE, RankSpec
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


def load_stage(spec: RankSpec, store: Store, memory_fd: int) -> Stage:
    """Meet the other ranks, then load; blocks.

    Raises:
        GroupBroken: some rank did not come.
        ModelError: the model cannot be used, or not be split so.
    """
    torch.set_num_threads(spec.num_threads)
    place = spec.place
    group = RankGroup(place, store, spec.timeout_s)
    loaded = load_shard(
        spec.model_dir,
        dtype=spec.dtype,
        device=DEVICE,
        place=place,
        all_reduce=group.all_reduce,
    )
    cache = kv_cache_of(spec, loaded.spec, memory_fd)
    return Stage(loaded.spec, place, loaded.module, cache, group, MonotonicClock())
