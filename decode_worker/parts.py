"""What the decode side is given of its instance."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from core.clock import Clock
from core.config import HandoffConfig, WorkerConfig
from core.kv_layout import KvLayout
from core.load import Load
from core.model_spec import ModelSpec
from decode_worker.incoming import Fetches
from kv_transfer.stores import KvStore
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.holds import StepHolds


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeParts:
    """Shared with the other phase, but for `fetches` and `load`."""

    blocks: InstanceBlocks
    holds: StepHolds
    layout: KvLayout
    model: ModelSpec
    store: KvStore
    copies: Executor
    """Threads that gather and scatter."""
    num_swap_blocks: int
    """Host memory for answers that make room, in blocks."""
    door: Door
    clock: Clock
    work: asyncio.Event
    fetches: Fetches
    load: Callable[[], Load]
    worker: WorkerConfig
    handoff: HandoffConfig
