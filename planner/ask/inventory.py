"""Kinds of GPUs from hosts' inventories: which, how many in each host, and how they are joined."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.errors import NoProfile
from core.inventory import NVLINK, GpuLink, HostGpu, HostInventory, load_inventory
from planner.ask.gathered import Gathered
from policy.found_gpus import entry_of
from policy.hardware import Gpu

REMEDY = "describe it, nvml_name too, in a file as policy/hardware.toml is, and give --hardware"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKind:
    """Hosts that have the same number of the same GPU."""

    key: str
    """In the catalogue."""
    gpu: Gpu
    """The catalogue's, with memory, power limit and links as they were found: of several hosts the
    least memory and the slowest links."""
    num_hosts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The GPUs of one kind in one host."""

    host: HostInventory
    gpus: tuple[HostGpu, ...]

    @property
    def slowest_link(self) -> GpuLink | None:
        return self.host.slowest_gpu_link(frozenset(gpu.index for gpu in self.gpus))

    @property
    def network_bytes_per_s(self) -> float | None:
        """Of each GPU: its host's, shared by all that it has."""
        whole = self.host.network_bytes_per_s
        return None if whole is None else whole / len(self.host.gpus)


def found_kinds(paths: Iterable[Path], gpus: Mapping[str, Gpu]) -> tuple[FoundKind, ...]:
    """In the order of the files. Raises ConfigError with every problem, or NoProfile."""
    gathered = Gathered()
    read = [gathered.of(partial(load_inventory, path)) for path in paths]
    hosts = [host for host in read if host is not None]
    for problem in _problems(hosts):
        gathered.add(problem)
    by_host = [(host, gathered.of(partial(_keys, host, gpus)) or ()) for host in hosts]
    gathered.check()
    groups: dict[tuple[str, int], list[_Group]] = {}
    for host, keys in by_host:
        for key in dict.fromkeys(keys):
            mine = tuple(g for g, k in zip(host.gpus, keys, strict=True) if k == key)
            groups.setdefault((key, len(mine)), []).append(_Group(host=host, gpus=mine))
    return tuple(
        FoundKind(key=key, gpu=_as_found(gpus[key], alike), num_hosts=len(alike))
        for (key, _), alike in groups.items()
    )


def _problems(hosts: Sequence[HostInventory]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for host in hosts:
        if not host.gpus:
            yield f"--inventory: {host.host} has no GPUs: {host.why_no_gpus or 'none was found'}"
        yield from (
            f"--inventory: GPU {gpu.index} of {host.host} is cut into partitions (MIG)"
            for gpu in host.gpus
            if gpu.has_mig
        )
        uuids = [gpu.uuid for gpu in host.gpus if gpu.uuid is not None]
        if again := [uuid for uuid in uuids if uuid in seen]:
            yield f"--inventory: {again[0]} is in two of them, {seen[again[0]]} and {host.host}"
        seen |= dict.fromkeys(uuids, host.host)


def _keys(host: HostInventory, gpus: Mapping[str, Gpu]) -> tuple[str, ...]:
    """Of each GPU. Raises NoProfile."""
    found = []
    for gpu in host.gpus:
        key = entry_of(gpus, gpu.name, gpu.memory_bytes)
        if key is None:
            memory = "" if gpu.memory_bytes is None else f" with {gpu.memory_bytes / 1e9:.1f} GB"
            raise NoProfile(f"the GPU {gpu.name!r}{memory} of {host.host}", tuple(gpus), REMEDY)
        found.append(key)
    return tuple(found)


def _as_found(gpu: Gpu, alike: Sequence[_Group]) -> Gpu:
    """What nobody could tell stays as the catalogue has it."""
    gpu = replace(gpu, gpus_per_host=len(alike[0].gpus))
    where = f"inventory of {', '.join(group.host.host for group in alike)}"
    if memory := _known(each.memory_bytes for group in alike for each in group.gpus):
        gpu = replace(gpu, memory_bytes=int(min(memory)), memory_source=where)
    if network := _known(group.network_bytes_per_s for group in alike):
        gpu = replace(gpu, network_bytes_per_s=min(network), network_source=where)
    if limits := _known(each.power_limit_w for group in alike for each in group.gpus):
        gpu = replace(gpu, tdp_w=max(limits), idle_w=min(gpu.idle_w, max(limits)))
    links = [(group.slowest_link, group) for group in alike]
    known = [(link.bytes_per_s, link, group) for link, group in links if link and link.bytes_per_s]
    if known:
        bytes_per_s, link, group = min(known, key=lambda each: each[0])
        name = _link_name(link, group)
        gpu = replace(gpu, link=name, link_bytes_per_s=bytes_per_s)
        gpu = replace(gpu, spec_source=f"{gpu.spec_source}; link by {where}")
    return gpu


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value]


def _link_name(link: GpuLink, group: _Group) -> str:
    first = next(gpu for gpu in group.gpus if gpu.index == link.first)
    generation = first.nvlink if link.kind == NVLINK else first.pcie
    return generation or link.kind
