"""Which host each instance is on: tensor-parallel ranks of a stage together, stages free to spread.

First fit in the order that is given; the largest first where that order needs too many hosts. An
instance is counted where its first stage is.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Need(NamedTuple):
    """What one instance takes."""

    num_stages: int
    gpus_per_stage: int


def packed(needs: Sequence[Need], gpus_per_host: int, num_hosts: int) -> tuple[int, ...] | None:
    """The host of each, numbered from 0; None where they do not fit into so many."""
    given = list(range(len(needs)))
    largest_first = sorted(given, key=lambda i: -needs[i].num_stages * needs[i].gpus_per_stage)
    found = _packed(needs, given, gpus_per_host, num_hosts)
    return found or _packed(needs, largest_first, gpus_per_host, num_hosts)


def _packed(
    needs: Sequence[Need], order: Sequence[int], gpus_per_host: int, num_hosts: int
) -> tuple[int, ...] | None:
    free: list[int] = []
    hosts = [0] * len(needs)
    for i in order:
        host = _place(needs[i], free, gpus_per_host, num_hosts)
        if host is None:
            return None
        hosts[i] = host
    return tuple(hosts)


def _place(need: Need, free: list[int], gpus_per_host: int, num_hosts: int) -> int | None:
    whole = need.num_stages * need.gpus_per_stage
    if need.gpus_per_stage > gpus_per_host:
        return None
    if whole <= gpus_per_host:
        return _take(whole, free, gpus_per_host, num_hosts)
    first = None
    for _ in range(need.num_stages):
        host = _take(need.gpus_per_stage, free, gpus_per_host, num_hosts)
        if host is None:
            return None
        first = host if first is None else first
    return first


def _take(num_gpus: int, free: list[int], gpus_per_host: int, num_hosts: int) -> int | None:
    """Off the first host that has so many left, or a new one."""
    for host, left in enumerate(free):
        if left >= num_gpus:
            free[host] -= num_gpus
            return host
    if len(free) == num_hosts:
        return None
    free.append(gpus_per_host - num_gpus)
    return len(free) - 1
