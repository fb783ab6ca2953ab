"""Which layouts and pairs of them are looked at: DistServe's two algorithms, and colocated ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from core.member import Role
from core.parallel import ParallelLayout
from planner.search.fleet import Fleet, Hardware
from planner.search.hosts import Need, packed
from planner.search.results import Candidate, Pool
from planner.sim.spec import Scheduling


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an instance may be."""

    max_gpus: int = 64
    """Of one instance."""
    least_tokens: int = 1
    """Of KV room: with less, no request of the workload fits."""
    max_hosts: int = 64
    """That one instance spans (Algorithm 1's N)."""


def layouts(hardware: Hardware, limits: Limits, role: Role) -> tuple[ParallelLayout, ...]:
    """That the model has times for, that fit into hosts and that have room for a request."""
    most = min(limits.max_gpus, hardware.num_gpus, limits.max_hosts * hardware.gpus_per_host)
    found = (
        layout
        for layout in hardware.source.layouts()
        if layout.num_workers <= most
        and _fits(hardware, layout)
        and _request_room(hardware, layout, role) >= limits.least_tokens
    )
    return tuple(sorted(found, key=lambda layout: (layout.num_workers, layout.pp)))


def _fits(hardware: Hardware, layout: ParallelLayout) -> bool:
    need = Need(num_stages=layout.pp, gpus_per_stage=layout.tp)
    return packed([need], hardware.gpus_per_host, hardware.num_hosts) is not None


def _request_room(hardware: Hardware, layout: ParallelLayout, role: Role) -> int:
    """KV room that one request can have: stages write answers in as many lanes."""
    tokens = hardware.source.capacity_tokens(layout)
    return tokens if role is Role.PREFILL else tokens // layout.pp


def pools(fleet: Fleet, role: Role, limits: Limits) -> tuple[Pool, ...]:
    """One instance of each layout on each kind of hardware: Algorithm 1's configurations."""
    return tuple(
        Pool(role=role, layout=layout, num=1, hardware=hardware.name)
        for hardware in fleet.hardware
        for layout in layouts(hardware, limits, role)
    )


def mixed_pools(fleet: Fleet, limits: Limits) -> tuple[Pool, ...]:
    """Colocated instances: prompts first (as vLLM did it), and prompts in chunks between answers
    (Sarathi-Serve)."""
    return tuple(
        Pool(
            role=Role.MIXED,
            layout=each.layout,
            num=1,
            hardware=each.hardware,
            scheduling=scheduling,
        )
        for each in pools(fleet, Role.MIXED, limits)
        for scheduling in (Scheduling.EXCLUSIVE, Scheduling.CHUNKED)
    )


def units(fleet: Fleet, limits: Limits) -> tuple[Candidate, ...]:
    """Algorithm 2: one prefill and one decode instance, cut into segments of which each pair fits
    into one host."""
    found: dict[Candidate, None] = {}
    for hardware in fleet.hardware:
        known = (layouts(hardware, limits, role) for role in (Role.PREFILL, Role.DECODE))
        for prefill, decode in product(*known):
            for num_segments in _cuts(prefill, decode, hardware):
                unit = _unit(hardware, prefill, decode, num_segments)
                found.setdefault(unit)
    return tuple(found)


def _unit(
    hardware: Hardware, prefill: ParallelLayout, decode: ParallelLayout, num_segments: int
) -> Candidate:
    pair = ((Role.PREFILL, prefill), (Role.DECODE, decode))
    return Candidate(
        pools=tuple(
            Pool(role=role, layout=layout, num=1, hardware=hardware.name) for role, layout in pair
        ),
        num_segments=num_segments,
    )


def _cuts(prefill: ParallelLayout, decode: ParallelLayout, hardware: Hardware) -> Iterator[int]:
    """Into as few segments as fit: more would only spread the same GPUs over more hosts."""
    for num in range(1, min(prefill.pp, decode.pp, hardware.num_hosts) + 1):
        divides = prefill.pp % num == 0 and decode.pp % num == 0
        gpus = (prefill.num_workers + decode.num_workers) // num
        if divides and gpus <= hardware.gpus_per_host:
            yield num
            return


def times_as_many(candidate: Candidate, counts: Sequence[int]) -> Candidate:
    """The same pools with these numbers of instances."""
    sized = zip(candidate.pools, counts, strict=True)
    return replace(candidate, pools=tuple(replace(pool, num=num) for pool, num in sized))
