"""What NVML says of a host becomes its inventory; where it says nothing, that is an answer too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.inventory import NVLINK, PCIE, HostInventory
from deploy.inventory.host import NO_GPUS, read_inventory
from deploy.inventory.nvml import NvmlFailed
from policy.found_gpus import entry_of
from policy.hardware import catalogue
from tests.deploy.inventory.described import (
    DescribedNvml,
    bridged_host,
    h100_host,
    l40s_host,
    laptop,
)
from tests.deploy.inventory.player import DATA, Player

RECORDED = [
    # file          described   key             GPUs kind    NVLinks  bytes/s
    ("h100_sxm_8", h100_host, "h100-80g-sxm", 8, NVLINK, 18, 450e9),
    ("l40s_2", l40s_host, "l40s", 2, PCIE, 0, 32e9),
]


@pytest.mark.parametrize(
    ("file", "described", "key", "num", "kind", "num_nvlinks", "bytes_per_s"), RECORDED
)
def test_a_recorded_host(
    file: str,
    described: Callable[[], DescribedNvml],
    key: str,
    num: int,
    kind: str,
    num_nvlinks: int,
    bytes_per_s: float,
    tmp_path: Path,
) -> None:
    found = read_inventory(Player(DATA / f"{file}.json"), tmp_path)
    gpus = catalogue()
    assert [entry_of(gpus, gpu.name, gpu.memory_bytes) for gpu in found.gpus] == [key] * num
    assert len(found.gpu_links) == num * (num - 1) // 2
    for link in found.gpu_links:
        assert (link.kind, link.num_nvlinks, link.bytes_per_s) == (kind, num_nvlinks, bytes_per_s)
        assert link.bytes_per_s == gpus[key].link_bytes_per_s
        assert link.has_p2p
    assert found.why_no_gpus is None
    assert not list(found.problems())
    assert found == read_inventory(described(), tmp_path)
    assert HostInventory.from_json(found.to_json()) == found


def test_all_of_one_gpu(tmp_path: Path) -> None:
    gpu = read_inventory(Player(DATA / "h100_sxm_8.json"), tmp_path).gpus[3]
    assert (gpu.index, gpu.pci_bus_id) == (3, "00000000:61:00.0")
    assert gpu.uuid == "GPU-00000000-0000-4000-8000-000000000061"
    assert (gpu.memory_bytes, gpu.memory_used_bytes) == (85_520_809_984, 668_131_328)
    assert (gpu.power_limit_w, gpu.power_w) == (700.0, 70.0)
    assert (gpu.pcie, gpu.pcie_bytes_per_s) == ("PCIe 5 x16", 64e9)
    assert (gpu.nvlink, gpu.num_nvlinks, gpu.nvlink_bytes_per_s) == ("NVLink 4", 18, 450e9)
    assert (gpu.compute_capability, gpu.has_ecc, gpu.has_mig) == ("9.0", True, False)


@pytest.mark.parametrize("file", ["h100_sxm_8", "l40s_2", "laptop"])
def test_a_recording_says_where_it_is_from(file: str) -> None:
    assert "not recorded" in Player(DATA / f"{file}.json").about


def test_paths_between_gpus(tmp_path: Path) -> None:
    found = read_inventory(h100_host(), tmp_path)
    by_pair = {(link.first, link.second): link.path for link in found.gpu_links}
    assert by_pair[0, 3] == "one NUMA node"
    assert by_pair[3, 4] == "between NUMA nodes"


@pytest.mark.parametrize("num_links", [12, 4])
def test_bridges_join_pairs_only(num_links: int, tmp_path: Path) -> None:
    found = read_inventory(bridged_host(num_links), tmp_path)
    assert found.gpu_bytes_per_s(0, 1) == num_links * 25e9
    assert found.gpu_bytes_per_s(0, 2) == found.gpu_bytes_per_s(2, 1) == 32e9
    assert [gpu.num_nvlinks for gpu in found.gpus] == [num_links, num_links, 0]


def test_gpus_of_different_partitions_of_a_switch_have_no_nvlink(tmp_path: Path) -> None:
    nvml = h100_host()
    nvml.are_joined = lambda one, other: one // 4 == other // 4
    found = read_inventory(nvml, tmp_path)
    assert found.gpu_bytes_per_s(0, 3) == 450e9
    assert found.gpu_bytes_per_s(3, 4) == 64e9


def test_a_pair_is_as_fast_as_its_slower_gpu(tmp_path: Path) -> None:
    nvml = l40s_host()
    nvml.gpus = (nvml.gpus[0], replace(nvml.gpus[1], pcie=(4, 8)))
    assert read_inventory(nvml, tmp_path).gpu_bytes_per_s(0, 1) == 16e9


SPEEDS = [
    # id                       capability  MB/s told  generation    bytes/s of one link
    ("with error correction", (9, 0), 26_562, "NVLink 4", 25e9),
    ("slowed down", (9, 0), 20_000, "NVLink 4", 20e9),
    ("not told", (8, 0), 0, "NVLink 3", 25e9),
    ("a later generation", (13, 0), 100_000, "NVLink", 100e9),
    ("nobody knows", (13, 0), 0, "NVLink", None),
]


@pytest.mark.parametrize(
    ("capability", "told", "generation", "bytes_per_s"),
    [c[1:] for c in SPEEDS],
    ids=[c[0] for c in SPEEDS],
)
def test_speed_of_a_link(
    capability: tuple[int, int],
    told: int,
    generation: str,
    bytes_per_s: float | None,
    tmp_path: Path,
) -> None:
    nvml = h100_host()
    nvml.gpus = tuple(
        replace(gpu, compute_capability=capability, nvlink_mb_per_s=told) for gpu in nvml.gpus[:2]
    )
    (link,) = (found := read_inventory(nvml, tmp_path)).gpu_links
    assert found.gpus[0].nvlink == generation
    assert link.kind == NVLINK
    assert link.bytes_per_s == (None if bytes_per_s is None else 18 * bytes_per_s)


UNSUPPORTED = {
    "UUID": "uuid",
    "PciInfo": "pci_bus_id",
    "MemoryInfo": "memory_bytes",
    "EnforcedPowerLimit": "power_limit_w",
    "PowerUsage": "power_w",
    "CudaComputeCapability": "compute_capability",
    "MaxPcieLinkGeneration": "pcie",
    "MaxPcieLinkWidth": "pcie_bytes_per_s",
    "EccMode": "has_ecc",
    "MigMode": "has_mig",
    "NvLink": "nvlink",
}


@pytest.mark.parametrize("call", UNSUPPORTED)
def test_what_a_gpu_does_not_support_stays_unknown(call: str, tmp_path: Path) -> None:
    whole, nvml = h100_host(), h100_host()
    nvml.gpus = tuple(replace(gpu, unsupported=frozenset({call})) for gpu in nvml.gpus)
    found = read_inventory(nvml, tmp_path)
    assert {getattr(gpu, UNSUPPORTED[call]) for gpu in found.gpus} == {None}
    assert len(found.gpus) == len(whole.gpus)
    assert HostInventory.from_json(found.to_json()) == found


def test_nothing_is_supported(tmp_path: Path) -> None:
    nvml = l40s_host()
    every = frozenset({*UNSUPPORTED, "Name", "FieldValues"})
    nvml.gpus = tuple(replace(gpu, unsupported=every) for gpu in nvml.gpus)
    found = read_inventory(nvml, tmp_path)
    assert [gpu.name for gpu in found.gpus] == ["", ""]
    assert found.gpu_bytes_per_s(0, 1) is None


WITHOUT = [
    # id              NVML                                      why
    ("no driver", Player(DATA / "laptop.json"), "no NVIDIA driver: NVML Shared Library Not Found"),
    ("the same", laptop(), "no NVIDIA driver: NVML Shared Library Not Found"),
    ("not loaded", DescribedNvml(init_error=9), "no NVIDIA driver: Driver Not Loaded"),
    ("not installed", None, "pynvml is not installed: pip install nvidia-ml-py"),
    ("no GPU", DescribedNvml(), NO_GPUS),
]


@pytest.mark.parametrize(("nvml", "why"), [c[1:] for c in WITHOUT], ids=[c[0] for c in WITHOUT])
def test_a_host_without_gpus_says_why(
    nvml: DescribedNvml | Player | None, why: str, tmp_path: Path
) -> None:
    found = read_inventory(nvml, tmp_path)
    assert (found.gpus, found.gpu_links, found.why_no_gpus) == ((), (), why)
    assert found.num_cores >= 1
    assert HostInventory.from_json(found.to_json()) == found


def test_a_lost_gpu_is_an_error_and_nvml_is_ended(tmp_path: Path) -> None:
    nvml = h100_host()
    nvml.lost = 5
    with pytest.raises(NvmlFailed, match="GPU is lost"):
        read_inventory(nvml, tmp_path)
    assert (nvml.num_begun, nvml.num_ended) == (1, 1)


def test_nvml_is_ended_as_often_as_it_is_begun(tmp_path: Path) -> None:
    for nvml in (h100_host(), DescribedNvml(), laptop()):
        read_inventory(nvml, tmp_path)
        assert nvml.num_begun == nvml.num_ended


def test_memory_of_the_host(tmp_path: Path) -> None:
    assert read_inventory(None, tmp_path).memory_bytes is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree: 5 kB\n")
    assert read_inventory(None, tmp_path).memory_bytes == 1_024_000


def test_this_host_answers() -> None:
    found = read_inventory(None)
    assert found.host
    assert not list(found.problems())
