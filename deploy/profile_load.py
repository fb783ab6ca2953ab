"""Makes of a model folder what a profile measures, and of the other cores a load."""

import os
import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from core.clock import Clock
from core.config import EngineConfig
from core.profile import Machine, Subject
from deploy.busy import busy_neighbours
from deploy.memory import (
    RANK_BYTES,
    available_memory_bytes,
    check_memory,
    kv_bytes,
    weights_bytes,
)
from deploy.profile_points import Room
from deploy.profile_steps import Bench

CPU_INFO = Path("/proc/cpuinfo")


def load_bench(model_dir: Path, engine: EngineConfig, clock: Clock) -> tuple[Bench, Subject]:
    """Load the model; takes seconds to minutes. Raises ModelError or TooLittleMemory."""
    # Here and not above: whoever brings an engine of their own needs no torch.
    from engine.model import load_model, with_weights
    from engine.runner import one_rank

    if engine.device == "cpu" and model_dir.is_dir():
        needed_bytes = weights_bytes(model_dir, engine.dtype) + kv_bytes(model_dir, engine)
        check_memory(RANK_BYTES + needed_bytes, available_memory_bytes())
    loaded = load_model(model_dir, dtype=engine.dtype, device=engine.device)
    loaded = with_weights(loaded, engine.weights)
    runner = one_rank(
        loaded,
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        num_threads=engine.num_threads,
        clock=clock,
    )
    runner.warm_up()
    spec = loaded.spec
    room = Room(
        max_context_tokens=spec.max_context_tokens,
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
    )
    subject = Subject(
        model=spec.name,
        weights_digest=spec.weights_digest,
        dtype=spec.dtype,
        device=engine.device,
        machine=machine(engine),
        block_size=engine.block_size,
        weights=spec.weights,
        kv_bytes_per_token=spec.kv_bytes_per_token,
    )
    bench = Bench(model=spec, runner=runner, store=runner.kv_cache, room=room, clock=clock)
    return bench, subject


def machine(engine: EngineConfig) -> Machine:
    """This one."""
    return Machine(cpu=_cpu(), num_cores=os.cpu_count() or 1, num_threads=engine.num_threads)


def neighbours_of(engine: EngineConfig) -> Callable[[], AbstractContextManager[None]]:
    """What loads the machine: a process per core that a step leaves free, or one on the GPU."""
    num_free = (os.cpu_count() or 1) - engine.num_threads
    num_processes = max(1, num_free) if engine.device == "cpu" else 1
    return lambda: busy_neighbours(num_processes, engine.device)


def _cpu() -> str:
    """Its model name where the system tells it."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()
