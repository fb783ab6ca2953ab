"""Whether a cluster fits into this machine's memory, before anything is started.

Standard library and `core` only: `tools/environment.py` asks before anything is installed.
"""

import json
import math
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

from core.config import EngineConfig
from core.errors import BatonError
from core.model_spec import DTYPE_BYTES
from core.plan import Plan

RANK_BYTES = 400_000_000
"""Python with torch and transformers loaded, beside weights and KV; measured 0.39 GB."""
ROUTER_BYTES = 150_000_000
"""Measured 0.10 GB; more with requests."""
HOST_BYTES = 400_000_000
"""Ray's own processes, Valkey and the command that started them."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""


class TooLittleMemory(BatonError):
    """Starting would push the machine into swapping, or be killed half-way."""

    status = "RESOURCE_EXHAUSTED"


def check_memory(needed_bytes: float, available_bytes: float | None) -> None:
    """Raise TooLittleMemory; a system that does not say what it has is trusted."""
    if available_bytes is not None and available_bytes < needed_bytes:
        raise TooLittleMemory(
            f"{available_bytes / 1e9:.1f} GB of memory are free, {needed_bytes / 1e9:.1f} GB are "
            "needed: close other programs, give the container more, or have fewer instances or "
            "num_blocks"
        )


def cluster_bytes(plan: Plan, engine: EngineConfig, model_dir: Path) -> float:
    """What a cluster takes from this machine; what lies on GPUs is not counted."""
    instances = plan.prefill.replicas + plan.decode.replicas + plan.mixed.replicas
    per_instance = 0
    if engine.device == "cpu":
        # Once per instance: its ranks share them out.
        per_instance = weights_bytes(model_dir, engine.dtype) + kv_bytes(model_dir, engine)
    processes = plan.num_ranks * RANK_BYTES + plan.router.replicas * ROUTER_BYTES + HOST_BYTES
    return instances * per_instance + processes


def weights_bytes(model_dir: Path, dtype: str) -> int:
    """Of all tensors of a checkpoint once loaded; damaged files are the loader's to refuse."""
    num_values = 0
    for path in model_dir.glob("*.safetensors"):
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            header = _object(file.read(min(header_bytes, MAX_HEADER_BYTES)))
        shapes = (about.get("shape", ()) for about in header.values())
        num_values += sum(math.prod(shape) for shape in shapes if shape)
    return num_values * DTYPE_BYTES[dtype]


def kv_bytes(model_dir: Path, engine: EngineConfig) -> int:
    """Of one instance's KV blocks; 0 for a config.json that does not say it plainly."""
    config = _object(_read(model_dir / "config.json").encode())
    heads = config.get("num_attention_heads") or 1
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // heads
    kv_heads = config.get("num_key_value_heads") or heads
    values_per_token: int = 2 * config.get("num_hidden_layers", 0) * kv_heads * head_dim
    return values_per_token * DTYPE_BYTES[engine.dtype] * engine.block_size * engine.num_blocks


def available_memory_bytes(system: Path = Path("/")) -> float | None:
    """What a new process may take: the system's estimate, or less where a container is limited."""
    found = []
    if match := re.search(r"MemAvailable:\s+(\d+) kB", _read(system / "proc/meminfo")):
        found.append(int(match[1]) * 1024.0)
    cgroup = system / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit_text, used_text = _read(cgroup / limit).strip(), _read(cgroup / used).strip()
        if limit_text.isdigit() and used_text.isdigit():  # "max" is no limit
            found.append(float(limit_text) - float(used_text) + _reclaimable_bytes(cgroup))
    if not found and sys.platform == "darwin":
        # No estimate without a library: all of it, which still finds a machine that is too small.
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    return min(found, default=None)


def _reclaimable_bytes(cgroup: Path) -> float:
    """File cache that counts as used by a container but is given back when needed."""
    for name in ("memory.stat", "memory/memory.stat"):
        if match := re.search(r"^(?:total_)?inactive_file (\d+)$", _read(cgroup / name), re.M):
            return float(match[1])
    return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
