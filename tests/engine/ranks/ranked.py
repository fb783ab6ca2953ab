"""Ranks of one instance under test, with what they told and what is left of them."""

import queue
import struct
from dataclasses import dataclass, field
from typing import Any

import psutil

from core.config import EngineConfig
from core.parallel import ParallelLayout
from engine.ranks.leader import RankedForward
from engine.ranks.spec import RANK_TIMEOUT_S
from engine.ranks.start import start_ranks
from engine.runner import Runner
from tests.engine.tiny import NUM_BLOCKS, TinyModel

ENGINE = EngineConfig(num_blocks=NUM_BLOCKS)
PATIENCE_S = 30.0
"""For what happens at once on a machine that has nothing else to do."""
NAN = struct.pack("<f", float("nan"))


@dataclass(slots=True)
class Ranked:
    """Started ranks."""

    forward: RankedForward
    runner: Runner[Any]
    """Any: what steps answers does not care where KV is."""
    reasons: "queue.Queue[str]"
    pids: dict[int, int] = field(init=False)
    processes: list[psutil.Process] = field(init=False)

    def __post_init__(self) -> None:
        self.pids = self.forward.pids
        self.processes = [psutil.Process(pid) for pid in self.pids.values()]

    @property
    def lost(self) -> bool:
        """Whether `on_lost` was called and nobody asked yet."""
        return not self.reasons.empty()

    def reason(self) -> str:
        """What `on_lost` was told, now or soon."""
        return self.reasons.get(timeout=PATIENCE_S)

    def survivors(self) -> list[psutil.Process]:
        """Ranks that do not end."""
        _, alive = psutil.wait_procs(self.processes, timeout=PATIENCE_S)
        return list(alive)

    def poison(self) -> None:
        """NaN everywhere: nothing hides KV that was never written."""
        cache = self.forward.kv_cache
        tokens = range(cache.num_blocks * cache.block_size)
        size = cache.payload_bytes(cache.num_layers, len(tokens))
        payload = memoryview(NAN * (size // len(NAN)))
        cache.scatter(range(cache.num_layers), range(cache.num_blocks), tokens, payload)


def start(model: TinyModel, layout: ParallelLayout, timeout_s: float = RANK_TIMEOUT_S) -> Ranked:
    """Ranks with poisoned KV."""
    reasons: queue.Queue[str] = queue.Queue()
    forward = start_ranks(
        model.directory,
        engine=ENGINE,
        layout=layout,
        on_lost=reasons.put,
        timeout_s=timeout_s,
    )
    ranked = Ranked(forward, Runner(forward, num_threads=1), reasons)
    ranked.poison()
    return ranked
