"""The inventory of this host."""

import os
import platform
import re
from pathlib import Path

from core.inventory import MAX_GPUS, HostGpu, HostInventory
from deploy.inventory.gpus import gpu_of
from deploy.inventory.network import network_links
from deploy.inventory.nvlinks import nvlinks_of
from deploy.inventory.nvml import Nvml, asked, ended, load_nvml, why_not_begun
from deploy.inventory.pairs import Seen, gpu_links

NO_GPUS = "the NVIDIA driver finds no GPU"


def num_gpus_here() -> int:
    """That NVIDIA's driver knows; 0 where there is none. Raises NvmlFailed as `read_inventory`."""
    return len(read_inventory(load_nvml()).gpus)


def read_inventory(nvml: Nvml | None, system: Path = Path("/")) -> HostInventory:
    """What is here now; a host without NVIDIA's driver has no GPUs, and says why.

    Raises NvmlFailed where a GPU is there but broken.
    """
    host = HostInventory(
        host=platform.node(),
        num_cores=_num_cores(),
        memory_bytes=_memory_bytes(system),
        network=network_links(system),
        why_no_gpus=why_not_begun(nvml),
    )
    if host.why_no_gpus is not None or nvml is None:
        return host
    with ended(nvml):
        return _with_gpus(host, nvml)


def _with_gpus(host: HostInventory, nvml: Nvml) -> HostInventory:
    num = min(asked(nvml, nvml.nvmlDeviceGetCount) or 0, MAX_GPUS)
    seen = [found for index in range(num) if (found := _seen(nvml, index)) is not None]
    gpus: tuple[HostGpu, ...] = tuple(each.gpu for each in seen)
    return HostInventory(
        host=host.host,
        num_cores=host.num_cores,
        memory_bytes=host.memory_bytes,
        network=host.network,
        driver=asked(nvml, nvml.nvmlSystemGetDriverVersion),
        gpus=gpus,
        why_no_gpus=None if gpus else NO_GPUS,
        gpu_links=gpu_links(nvml, seen),
    )


def _seen(nvml: Nvml, index: int) -> Seen | None:
    """None for a GPU that this user may not open."""
    handle = asked(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return None
    links = nvlinks_of(nvml, handle)
    return Seen(handle=handle, gpu=gpu_of(nvml, index, handle, links), links=links)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes(system: Path) -> int | None:
    try:
        text = (system / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"MemTotal:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else None
