"""Names that drivers print, and the catalogue's entries."""

from dataclasses import replace

import pytest

from policy.found_gpus import entry_of
from policy.hardware import catalogue

GPUS = catalogue()

FOUND = [
    # name                       memory_bytes     key
    ("NVIDIA H100 80GB HBM3", 85_520_809_984, "h100-80g-sxm"),
    ("NVIDIA H100 PCIe", 85_520_809_984, "h100-80g-pcie"),
    ("NVIDIA H100 NVL", 100_485_038_080, "h100-nvl"),
    ("NVIDIA H100 80GB HBM3", 85_024_112_640, "h100-80g-sxm"),
    ("NVIDIA A100-SXM4-40GB", 42_949_672_960, "a100-40g-sxm"),
    ("A100-SXM4-80GB", 85_899_345_920, "a100-80g-sxm"),
    ("NVIDIA L40S", None, "l40s"),
    ("NVIDIA L40", 48_305_799_168, None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10_200_547_328, None),
    ("NVIDIA L4", 12_000_000_000, None),
    ("NVIDIA GeForce RTX 5090", 34_190_917_632, None),
    ("", None, None),
]


@pytest.mark.parametrize(("name", "memory_bytes", "key"), FOUND)
def test_entry(name: str, memory_bytes: int | None, key: str | None) -> None:
    assert entry_of(GPUS, name, memory_bytes) == key


@pytest.mark.parametrize("key", [key for key, gpu in GPUS.items() if gpu.nvml_name])
def test_every_entry_is_found_by_its_own_name(key: str) -> None:
    assert entry_of(GPUS, GPUS[key].nvml_name, GPUS[key].memory_bytes) == key


@pytest.mark.parametrize("key", GPUS)
def test_every_entry_has_a_name_in_ray(key: str) -> None:
    assert GPUS[key].ray_accelerator
    assert GPUS[key].nvml_name or "amd" in GPUS[key].name.lower()


def test_kinds_of_one_name_differ_by_their_memory() -> None:
    smaller = replace(GPUS["h200"], memory_bytes=GPUS["h200"].memory_bytes // 2)
    gpus = {**GPUS, "h200-half": smaller}
    for key in ("h200", "h200-half"):
        assert entry_of(gpus, "NVIDIA H200", gpus[key].memory_bytes) == key
