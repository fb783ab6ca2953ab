"""What a host has: GPUs, what joins them, its network. Found on the host, read by the planner."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import ConfigError
from core.json_tree import loads, tree

SCHEMA = 1
MAX_BYTES = 1 << 20
"""Of a file: 64 GPUs and all pairs of them take a third of it."""
MAX_GPUS = 64
MAX_NETWORK_LINKS = 1024
MAX_TEXT = 256

NVLINK, PCIE = "NVLink", "PCIe"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGpu:
    """One GPU. None: its driver does not say."""

    index: int
    """As the driver counts; CUDA may be told to count otherwise."""
    name: str
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: str | None = None
    """Such as 9.0."""
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    """That is enforced now."""
    power_w: float | None = None
    """Drawn now."""
    pcie: str | None = None
    """The best that this card and its slot do together, such as PCIe 5 x16."""
    pcie_bytes_per_s: float | None = None
    """Per direction."""
    nvlink: str | None = None
    """Generation, such as NVLink 4; None where no link is active."""
    num_nvlinks: int = 0
    """Active ones."""
    nvlink_bytes_per_s: float | None = None
    """Of all active links together, per direction."""
    has_ecc: bool | None = None
    """Error correction is on."""
    has_mig: bool | None = None
    """It is cut into partitions, which count as no GPU here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLink:
    """The fastest way between two GPUs of a host."""

    first: int
    """Index of the lower one."""
    second: int
    kind: str
    """NVLink or PCIe."""
    num_nvlinks: int = 0
    bytes_per_s: float | None = None
    """Per direction, as the links run; protocols take some of it."""
    path: str | None = None
    """Where their PCIe ways meet: in one board, switch, root, NUMA node, or system."""
    has_p2p: bool | None = None
    """One can read the other's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLink:
    """One interface of the host."""

    name: str
    is_up: bool
    is_physical: bool
    """A device of its own, no bridge, tunnel or container's end of one."""
    bytes_per_s: float | None = None
    """Per direction; None: the driver does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInventory:
    """All of one host."""

    schema: int = SCHEMA
    host: str
    num_cores: int
    """That this process may use."""
    memory_bytes: int | None = None
    driver: str | None = None
    """NVIDIA's version."""
    gpus: tuple[HostGpu, ...] = ()
    why_no_gpus: str | None = None
    """One line, where there are none."""
    gpu_links: tuple[GpuLink, ...] = ()
    """Of every pair."""
    network: tuple[NetworkLink, ...] = ()

    def gpu_bytes_per_s(self, first: int, second: int) -> float | None:
        """Between two GPUs, per direction, in either order; None where nobody knows."""
        pair = (min(first, second), max(first, second))
        found = (each for each in self.gpu_links if (each.first, each.second) == pair)
        return next((each.bytes_per_s for each in found), None)

    def slowest_gpu_link(self, among: Collection[int]) -> GpuLink | None:
        """Of all pairs of these GPUs, since instances may come to lie on any; None where no link
        is known."""
        links = (each for each in self.gpu_links if each.first in among and each.second in among)
        known = [each for each in links if each.bytes_per_s is not None]
        return min(known, key=lambda each: each.bytes_per_s or 0.0, default=None)

    @property
    def network_bytes_per_s(self) -> float | None:
        """To other hosts, per direction: the fastest interfaces together. Slower ones are taken to
        be for management. None where no physical interface is up and says its speed."""
        speeds = [each.bytes_per_s for each in self.network if each.is_up and each.is_physical]
        known = [speed for speed in speeds if speed is not None]
        return sum(speed for speed in known if speed == max(known)) or None

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.schema != SCHEMA:
            yield f"schema must be {SCHEMA}, got {self.schema}"
        num, most = len(self.gpus), len(self.gpus) * (len(self.gpus) - 1) // 2
        if num > MAX_GPUS:
            yield f"at most {MAX_GPUS} GPUs, got {num}"
        if len(self.gpu_links) > most:
            yield f"{num} GPUs are {most} pairs, got {len(self.gpu_links)} gpu_links"
        if len(self.network) > MAX_NETWORK_LINKS:
            yield f"at most {MAX_NETWORK_LINKS} network links, got {len(self.network)}"
        if self.num_cores < 1:
            yield f"num_cores must be at least 1, got {self.num_cores}"
        yield from self._part_problems()

    def _part_problems(self) -> Iterator[str]:
        indexes = [gpu.index for gpu in self.gpus]
        if len(set(indexes)) < len(indexes):
            yield "two GPUs have one index"
        for link in self.gpu_links:
            if link.first >= link.second or not {link.first, link.second} <= set(indexes):
                yield f"a GPU link joins two of the GPUs, got {link.first} and {link.second}"
        for place, part in self._parts():
            for name, value in asdict(part).items():
                if isinstance(value, str) and len(value) > MAX_TEXT:
                    yield f"{place}.{name} has at most {MAX_TEXT} characters, got {len(value)}"
                if type(value) in (int, float) and value < 0:
                    yield f"{place}.{name} must be at least 0, got {value}"

    def _parts(self) -> Iterator[tuple[str, HostGpu | GpuLink | NetworkLink]]:
        for name in ("gpus", "gpu_links", "network"):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(getattr(self, name)))

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "inventory") -> "HostInventory":
        """Raises ConfigError with every problem."""
        if len(text) > MAX_BYTES:
            raise ConfigError((f"{name}: at most {MAX_BYTES} characters, got {len(text)}",))
        try:
            document = loads(text)
        except ValueError as error:
            raise ConfigError((f"{name}: {error}",)) from None
        problems: list[str] = []
        found = tree(cls, document, name, problems)
        if isinstance(found, cls) and not problems:
            problems += (f"{name}: {problem}" for problem in found.problems())
            if not problems:
                return found
        raise ConfigError(tuple(problems))


def load_inventory(path: Path) -> HostInventory:
    """Raises ConfigError with every problem."""
    try:
        with path.open(encoding="utf-8") as file:
            # One more than is allowed: a larger file is refused without being read whole.
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError((f"{path}: {error}",)) from None
    return HostInventory.from_json(text, str(path))
