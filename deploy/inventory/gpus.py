"""Each GPU of this host by itself: name, memory, power, how it is plugged in."""

from collections.abc import Sequence

from core.inventory import HostGpu
from deploy.inventory.nvlinks import NvLinks
from deploy.inventory.nvml import Nvml, asked

PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 1e9, 4: 2e9, 5: 4e9, 6: 8e9}
"""By generation, per direction: transfers a second through eight, of which the first two give a
fifth to their encoding. Packet headers are not taken off; data sheets count so, too."""


def gpu_of(nvml: Nvml, index: int, handle: object, links: NvLinks) -> HostGpu:
    """Raises NvmlFailed."""
    memory = asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    bus = asked(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    capability = asked(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    pcie, pcie_bytes_per_s = _pcie(nvml, handle)
    return HostGpu(
        index=index,
        name=asked(nvml, nvml.nvmlDeviceGetName, handle) or "",
        uuid=asked(nvml, nvml.nvmlDeviceGetUUID, handle),
        pci_bus_id=None if bus is None else bus.busId,
        compute_capability=None if capability is None else ".".join(map(str, capability)),
        memory_bytes=None if memory is None else memory.total,
        memory_used_bytes=None if memory is None else memory.used,
        power_limit_w=_watts(asked(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        power_w=_watts(asked(nvml, nvml.nvmlDeviceGetPowerUsage, handle)),
        pcie=pcie,
        pcie_bytes_per_s=pcie_bytes_per_s,
        nvlink=links.generation,
        num_nvlinks=links.num,
        nvlink_bytes_per_s=links.bytes_per_s(links.num),
        has_ecc=_is_on(asked(nvml, nvml.nvmlDeviceGetEccMode, handle)),
        has_mig=_is_on(asked(nvml, nvml.nvmlDeviceGetMigMode, handle)),
    )


def _pcie(nvml: Nvml, handle: object) -> tuple[str | None, float | None]:
    """The most that is possible: an idle GPU's link runs at a lower generation to save power."""
    generation = asked(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
    width = asked(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
    if not generation or not width:
        return None, None
    lane = PCIE_LANE_BYTES_PER_S.get(generation)
    return f"PCIe {generation} x{width}", None if lane is None else lane * width


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _is_on(modes: Sequence[int] | None) -> bool | None:
    """Of the current and the next mode, the current."""
    return None if modes is None else bool(modes[0])
