"""The NVLinks of one GPU: how many are active, how fast each is, where they lead."""

from dataclasses import dataclass

from deploy.inventory.nvml import (
    FIELD_NVLINK_MB_PER_S,
    MAX_NVLINKS,
    TO_SWITCH,
    Nvml,
    asked,
)

GENERATIONS: dict[tuple[int, ...], tuple[str, float]] = {
    (6, 0): ("NVLink 1", 20e9),
    (7, 0): ("NVLink 2", 25e9),
    (7, 5): ("NVLink 2", 25e9),
    (8, 0): ("NVLink 3", 25e9),
    (8, 6): ("NVLink 3", 14.0625e9),
    (9, 0): ("NVLink 4", 25e9),
    (10, 0): ("NVLink 5", 50e9),
    (10, 3): ("NVLink 5", 50e9),
}
"""By compute capability: generation, and bytes per second, link and direction in NVIDIA's data
sheets. Not by nvmlDeviceGetNvLinkVersion: what its numbers mean was documented late, and an A100
with NVLink 3 answers 5. The speed that NVML tells includes error correction on an H100, 26.6 for
25; so it counts only where it is less."""
UNNAMED = "NVLink"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvLinks:
    """The active ones of a GPU."""

    generation: str | None = None
    """None: there are none."""
    each_bytes_per_s: float | None = None
    to_gpus: tuple[str, ...] = ()
    """PCI bus id of the other end, of each link that leads to something other than a switch."""
    num_to_switches: int = 0

    @property
    def num(self) -> int:
        """Active links."""
        return len(self.to_gpus) + self.num_to_switches

    def num_to(self, pci_bus_id: str | None) -> int:
        """Links straight to that GPU."""
        return sum(same_bus(pci_bus_id, each) for each in self.to_gpus)

    def bytes_per_s(self, num: int) -> float | None:
        """Of so many of them together; None where there are none or nobody knows."""
        return num * self.each_bytes_per_s if num and self.each_bytes_per_s else None


def nvlinks_of(nvml: Nvml, handle: object) -> NvLinks:
    """Raises NvmlFailed."""
    # To the last one that any GPU has: those that a GPU lacks need not be its last.
    numbers = range(MAX_NVLINKS)
    active = [link for link in numbers if asked(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link)]
    if not active:
        return NvLinks()
    ends = [_far_end(nvml, handle, link) for link in active]
    generation, each_bytes_per_s = _speed(nvml, handle)
    return NvLinks(
        generation=generation,
        each_bytes_per_s=each_bytes_per_s,
        to_gpus=tuple(end for end in ends if end is not None),
        num_to_switches=ends.count(None),
    )


def _far_end(nvml: Nvml, handle: object, link: int) -> str | None:
    """A GPU's bus id. None: a switch, or a switch of another host, which has no bus id here."""
    if asked(nvml, nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == TO_SWITCH:
        return None
    bus = asked(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
    return None if bus is None else bus.busId


def _speed(nvml: Nvml, handle: object) -> tuple[str, float | None]:
    capability = asked(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle) or ()
    values = asked(nvml, nvml.nvmlDeviceGetFieldValues, handle, [FIELD_NVLINK_MB_PER_S]) or ()
    told = [value.value.uiVal * 1e6 for value in values if value.nvmlReturn == 0]
    generation = GENERATIONS.get(tuple(capability))
    if generation is None:
        return UNNAMED, max(told, default=0.0) or None
    name, sheet_bytes_per_s = generation
    return name, min([sheet_bytes_per_s, *(each for each in told if each > 0)])


def same_bus(one: str | None, other: str | None) -> bool:
    """Bus ids are hexadecimal in either case; none is like no other."""
    return one is not None and other is not None and one.lower() == other.lower()
