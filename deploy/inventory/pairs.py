"""What joins each pair of GPUs of this host: NVLinks straight or through switches, else PCIe."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from core.inventory import NVLINK, PCIE, GpuLink, HostGpu
from deploy.inventory.nvlinks import NvLinks
from deploy.inventory.nvml import P2P_NVLINK, P2P_OK, P2P_READ, Nvml, asked

PATHS = {
    0: "one board",
    10: "one PCIe switch",
    20: "several PCIe switches",
    30: "one PCIe root",
    40: "one NUMA node",
    50: "between NUMA nodes",
}
"""nvmlGpuTopologyLevel_t."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A GPU, and how to ask for it."""

    handle: object
    gpu: HostGpu
    links: NvLinks


def gpu_links(nvml: Nvml, seen: Sequence[Seen]) -> tuple[GpuLink, ...]:
    """Of every pair. Raises NvmlFailed."""
    return tuple(_link(nvml, first, second) for first, second in combinations(seen, 2))


def _link(nvml: Nvml, first: Seen, second: Seen) -> GpuLink:
    handles = first.handle, second.handle
    path = asked(nvml, nvml.nvmlDeviceGetTopologyCommonAncestor, *handles)
    read = asked(nvml, nvml.nvmlDeviceGetP2PStatus, *handles, P2P_READ)
    num_nvlinks = _num_nvlinks(nvml, first, second)
    return GpuLink(
        first=first.gpu.index,
        second=second.gpu.index,
        kind=NVLINK if num_nvlinks else PCIE,
        num_nvlinks=num_nvlinks,
        bytes_per_s=_bytes_per_s(first, second, num_nvlinks),
        path=None if path is None else PATHS.get(path),
        has_p2p=None if read is None else read == P2P_OK,
    )


def _num_nvlinks(nvml: Nvml, first: Seen, second: Seen) -> int:
    """Straight ones, else those that both have to switches, where NVML says that these join them:
    a switch may be cut into partitions."""
    if straight := first.links.num_to(second.gpu.pci_bus_id):
        return straight
    through_switches = min(first.links.num_to_switches, second.links.num_to_switches)
    if not through_switches:
        return 0
    status = asked(nvml, nvml.nvmlDeviceGetP2PStatus, first.handle, second.handle, P2P_NVLINK)
    return through_switches if status in (P2P_OK, None) else 0


def _bytes_per_s(first: Seen, second: Seen, num_nvlinks: int) -> float | None:
    """Of the slower of both."""
    if num_nvlinks:
        each = first.links.bytes_per_s(num_nvlinks), second.links.bytes_per_s(num_nvlinks)
    else:
        each = first.gpu.pcie_bytes_per_s, second.gpu.pcie_bytes_per_s
    known = [speed for speed in each if speed is not None]
    return min(known) if len(known) == len(each) else None
