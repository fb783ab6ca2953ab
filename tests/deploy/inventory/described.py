"""NVML of a host that is only described: real structures of pynvml, no library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pynvml

from deploy.inventory.nvml import FieldValue, MemoryInfo, PciInfo

INVALID_ARGUMENT, NOT_SUPPORTED, GPU_IS_LOST, LIBRARY_NOT_FOUND = 2, 3, 15, 12
GPU, SWITCH = 0, 2


@dataclass(frozen=True, kw_only=True)
class DescribedGpu:
    """One GPU; what its driver does not support is listed."""

    name: str
    bus_id: str
    memory_bytes: int
    power_limit_mw: int
    compute_capability: tuple[int, int]
    pcie: tuple[int, int]
    """Generation and width."""
    ends: tuple[tuple[int, str] | None, ...] = ()
    """Of each NVLink: what it leads to and its bus id; None: it is not active."""
    nvlink_mb_per_s: int = 0
    ecc: int = 1
    mig: int = 0
    unsupported: frozenset[str] = frozenset()
    """Calls."""


@dataclass(frozen=True, kw_only=True)
class Handle:
    """What pynvml gives out is a pointer."""

    index: int


@dataclass(kw_only=True)
class DescribedNvml:
    """Answers as NVML's reference says that it does."""

    gpus: tuple[DescribedGpu, ...] = ()
    path: Callable[[int, int], int] = lambda *_: 50
    """Level of the topology where two GPUs meet."""
    are_joined: Callable[[int, int], bool] = lambda *_: False
    """By NVLinks."""
    init_error: int | None = None
    lost: int | None = None
    """A GPU that answers nothing any more."""
    num_begun: int = 0
    num_ended: int = 0

    NVMLError: ClassVar[type[Exception]] = pynvml.NVMLError

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.num_begun += 1

    def nvmlShutdown(self) -> None:
        self.num_ended += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.126.09"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:
        return Handle(index=index)

    def _gpu(self, handle: object, call: str) -> DescribedGpu:
        index = _index(handle)
        if index == self.lost:
            raise pynvml.NVMLError(GPU_IS_LOST)
        if call in self.gpus[index].unsupported:
            raise pynvml.NVMLError(NOT_SUPPORTED)
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: object, /) -> str:
        return self._gpu(handle, "Name").name

    def nvmlDeviceGetUUID(self, handle: object, /) -> str:
        gpu = self._gpu(handle, "UUID")
        return f"GPU-00000000-0000-4000-8000-0000000000{gpu.bus_id[9:11].lower()}"

    def nvmlDeviceGetPciInfo(self, handle: object, /) -> PciInfo:
        return _pci(self._gpu(handle, "PciInfo").bus_id)

    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> MemoryInfo:
        total = self._gpu(handle, "MemoryInfo").memory_bytes
        used = total // 128
        found: MemoryInfo = pynvml.c_nvmlMemory_t(total=total, free=total - used, used=used)
        return found

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object, /) -> int:
        return self._gpu(handle, "EnforcedPowerLimit").power_limit_mw

    def nvmlDeviceGetPowerUsage(self, handle: object, /) -> int:
        return self._gpu(handle, "PowerUsage").power_limit_mw // 10

    def nvmlDeviceGetCudaComputeCapability(self, handle: object, /) -> tuple[int, int]:
        return self._gpu(handle, "CudaComputeCapability").compute_capability

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: object, /) -> int:
        return self._gpu(handle, "MaxPcieLinkGeneration").pcie[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: object, /) -> int:
        return self._gpu(handle, "MaxPcieLinkWidth").pcie[1]

    def nvmlDeviceGetEccMode(self, handle: object, /) -> list[int]:
        return [self._gpu(handle, "EccMode").ecc] * 2

    def nvmlDeviceGetMigMode(self, handle: object, /) -> list[int]:
        return [self._gpu(handle, "MigMode").mig] * 2

    def _end(self, handle: object, link: int) -> tuple[int, str] | None:
        ends = self._gpu(handle, "NvLink").ends
        if not ends:
            raise pynvml.NVMLError(NOT_SUPPORTED)
        if link >= len(ends):
            raise pynvml.NVMLError(INVALID_ARGUMENT)
        return ends[link]

    def nvmlDeviceGetNvLinkState(self, handle: object, link: int, /) -> int:
        return int(self._end(handle, link) is not None)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: object, link: int, /) -> int:
        end = self._end(handle, link)
        assert end is not None
        return end[0]

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: object, link: int, /) -> PciInfo:
        end = self._end(handle, link)
        assert end is not None
        return _pci(end[1])

    def nvmlDeviceGetFieldValues(
        self, handle: object, fields: list[int], /
    ) -> Sequence[FieldValue]:
        values: Sequence[Any] = (pynvml.c_nvmlFieldValue_t * len(fields))()
        speed = self._gpu(handle, "FieldValues").nvlink_mb_per_s
        for value, number in zip(values, fields, strict=True):
            value.fieldId, value.valueType = number, 1
            value.nvmlReturn = 0 if speed else NOT_SUPPORTED
            value.value.uiVal = speed
        return values

    def nvmlDeviceGetTopologyCommonAncestor(self, first: object, second: object, /) -> int:
        return self.path(_index(first), _index(second))

    def nvmlDeviceGetP2PStatus(self, first: object, second: object, index: int, /) -> int:
        joined = self.are_joined(_index(first), _index(second))
        return 0 if index == 0 or joined else 5


def _index(handle: object) -> int:
    assert isinstance(handle, Handle)
    return handle.index


def _pci(bus_id: str) -> PciInfo:
    found: PciInfo = pynvml.nvmlPciInfo_t(busId=bus_id.encode(), bus=int(bus_id[9:11], 16))
    return found


def h100_host() -> DescribedNvml:
    """Eight H100 SXM5 on four NVSwitches, two NUMA nodes."""
    buses = ("1B", "43", "52", "61", "9D", "C3", "D1", "DF")
    switches = [(SWITCH, f"00000000:{bus}:00.0") for bus in ("07", "08", "09", "0A")]
    # Five links to two of the switches, four to the others.
    ends = tuple(switches[number % 4] for number in range(18))
    gpus = tuple(
        DescribedGpu(
            name="NVIDIA H100 80GB HBM3",
            bus_id=f"00000000:{bus}:00.0",
            memory_bytes=85_520_809_984,
            power_limit_mw=700_000,
            compute_capability=(9, 0),
            pcie=(5, 16),
            ends=ends,
            nvlink_mb_per_s=26_562,
        )
        for bus in buses
    )
    return DescribedNvml(
        gpus=gpus,
        path=lambda one, other: 40 if one // 4 == other // 4 else 50,
        are_joined=lambda *_: True,
    )


def l40s_host() -> DescribedNvml:
    """Two L40S in slots of different processors."""
    gpus = tuple(
        DescribedGpu(
            name="NVIDIA L40S",
            bus_id=f"00000000:{bus}:00.0",
            memory_bytes=48_305_799_168,
            power_limit_mw=350_000,
            compute_capability=(8, 9),
            pcie=(4, 16),
            unsupported=frozenset({"MigMode"}),
        )
        for bus in ("4A", "B1")
    )
    return DescribedNvml(gpus=gpus)


def bridged_host(num_links: int = 12) -> DescribedNvml:
    """Three A100 PCIe, of which bridges join the first two."""
    buses = [f"00000000:{bus}:00.0" for bus in ("3B", "3C", "AF")]
    partner = {0: buses[1], 1: buses[0]}
    gpus = tuple(
        DescribedGpu(
            name="NVIDIA A100 80GB PCIe",
            bus_id=bus,
            memory_bytes=85_899_345_920,
            power_limit_mw=300_000,
            compute_capability=(8, 0),
            pcie=(4, 16),
            ends=tuple(
                (GPU, partner[number].lower()) if number in partner and link < num_links else None
                for link in range(12)
            ),
            nvlink_mb_per_s=25_781,
        )
        for number, bus in enumerate(buses)
    )
    return DescribedNvml(
        gpus=gpus,
        path=lambda one, other: 30 if other < 2 else 50,
        are_joined=lambda one, other: other < 2,
    )


def laptop() -> DescribedNvml:
    """No driver."""
    return DescribedNvml(init_error=LIBRARY_NOT_FOUND)
