"""One rank's part of a model: some of its layers, and of each some heads, rows and columns."""

from engine.sharding.layers import AllReduce
from engine.sharding.load import LoadedShard, check_layout, load_shard
from engine.sharding.stage import StageModule

__all__ = ["AllReduce", "LoadedShard", "StageModule", "check_layout", "load_shard"]
