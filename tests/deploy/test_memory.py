"""Whether a cluster fits: what it needs, what there is, and what is said when it does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.config import EngineConfig
from core.plan import Plan, PoolPlan
from deploy.memory import (
    HOST_BYTES,
    RANK_BYTES,
    ROUTER_BYTES,
    TooLittleMemory,
    available_memory_bytes,
    check_memory,
    cluster_bytes,
    kv_bytes,
    weights_bytes,
)
from deploy.tiny_model import write_tiny_llama

MEMINFO = "MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n"

MEMORY = [
    # id, files of the system, bytes available
    ("a plain machine", {"proc/meminfo": MEMINFO}, 8_192_000_000),
    (
        "an unlimited container",
        {"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": "max\n"},
        8_192_000_000,
    ),
    (
        "a limited container",
        {
            "proc/meminfo": MEMINFO,
            "sys/fs/cgroup/memory.max": "3000000000\n",
            "sys/fs/cgroup/memory.current": "1500000000\n",
            "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 500000000\n",
        },
        2_000_000_000,
    ),
    (
        "an older limited container",
        {
            "proc/meminfo": MEMINFO,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 7\n",
        },
        2_000_000_007,
    ),
]


@pytest.mark.parametrize(("files", "want"), [c[1:] for c in MEMORY], ids=[c[0] for c in MEMORY])
def test_available_memory(files: dict[str, str], want: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory_bytes(tmp_path) == want


def test_too_little_memory_is_said_with_both_figures() -> None:
    check_memory(3e9, 3e9)
    check_memory(3e9, None)  # a system that does not say
    with pytest.raises(TooLittleMemory, match=r"1\.0 GB of memory are free, 3\.0 GB are needed"):
        check_memory(3e9, 1e9)


def test_a_cluster_needs_weights_and_kv_per_instance(tmp_path: Path) -> None:
    model, engine = write_tiny_llama(tmp_path, layers=3), EngineConfig(num_blocks=10)
    # 3 layers × (K, V) × 2 heads × 16 values × 4 bytes, 16 tokens a block
    assert kv_bytes(model, engine) == 3 * 2 * 2 * 16 * 4 * 16 * 10
    weights = weights_bytes(model, "float32")
    file_bytes = (model / "model.safetensors").stat().st_size
    assert 0 < file_bytes - weights < 10_000  # the header
    assert weights_bytes(model, "bfloat16") == weights // 2
    three = Plan(prefill=PoolPlan(replicas=1), decode=PoolPlan(replicas=2))
    per_instance = RANK_BYTES + weights + kv_bytes(model, engine)
    assert cluster_bytes(three, engine, model) == 3 * per_instance + ROUTER_BYTES + HOST_BYTES
    on_gpus = cluster_bytes(three, replace(engine, device="cuda"), model)
    assert on_gpus == 3 * RANK_BYTES + ROUTER_BYTES + HOST_BYTES


def test_a_damaged_model_is_the_loader_s_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[")
    (tmp_path / "model.safetensors").write_bytes(b"\xff")
    assert kv_bytes(tmp_path, EngineConfig()) == 0
    assert weights_bytes(tmp_path, "float32") == 0
