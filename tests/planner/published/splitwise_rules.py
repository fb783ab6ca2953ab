"""Splitwise's published simulator as parameters of ours: machines, clusters, its requests."""

import numpy as np

from core.member import Role
from core.parallel import ParallelLayout
from planner.sim.spec import MIXED_POOL, Cluster, Instance, Kind, Network, Scheduling
from planner.sim.traffic import Traffic, traffic
from planner.workload.lengths import Recorded
from planner.workload.presets import load_lengths
from policy.splitwise import Curves, Splitwise, curves
from policy.splitwise_rows import all_rows

A100, H100, CAPPED = "a100-80gb", "h100-80gb", "h100-80gb-pcap"
MODEL = "bloom-176b"
TP8 = ParallelLayout(tp=8)
NUM_DRAWN = 100_000
SPAN_S = 120.0
NETWORK = Network(host_bytes_per_s=200 * 1024**3, is_shared=False, retry_s=1.0)
"""Each transfer for itself; no room: a second later again."""


def machine(hardware: str) -> Kind:
    """Eight GPUs, by the published look-up."""
    source = Splitwise(model=MODEL, hardware=hardware, form="lookup", max_batch=512)
    return Kind(
        name=hardware,
        times=source.times(TP8),
        num_gpus=8,
        capacity_tokens=source.capacity_tokens(TP8),
        max_batch=512,
        step_tokens=2048,
        scheduling=Scheduling.SPLITWISE,
        max_pauses=4,
        reserves_output=True,
        kv_bytes_per_token=source.kv_bytes_per_token,
        num_layers=source.num_layers,
    )


def split(prompts: tuple[str, int], tokens: tuple[str, int]) -> Cluster:
    """(Hardware, machines) that read prompts, and that write answers."""
    return _cluster([(*prompts, Role.PREFILL), (*tokens, Role.DECODE)])


def baseline(hardware: str, num: int) -> Cluster:
    """Machines that do both; the one with the fewest pending tokens is chosen."""
    return _cluster([(hardware, num, Role.MIXED)])


def _cluster(pools: list[tuple[str, int, Role]]) -> Cluster:
    places = [(kind, role) for kind, (_, num, role) in enumerate(pools) for _ in range(num)]
    return Cluster(
        kinds=tuple(machine(hardware) for hardware, _, _ in pools),
        instances=tuple(
            Instance(kind=kind, role=role, host=host) for host, (kind, role) in enumerate(places)
        ),
        network=NETWORK,
        placement=MIXED_POOL,
    )


def published_requests(workload: str, rate_per_s: float) -> Traffic:
    """Two minutes of its generator: Poisson arrivals, then prompts, then answers, from one seed.

    The rate only scales the arrivals: with one seed every rate has the same requests.
    """
    lengths = load_lengths(workload)
    assert isinstance(lengths, Recorded), "its lengths are those of a trace"
    rows = lengths.trace.requests
    random = np.random.RandomState(0)
    arrival_s = np.cumsum(random.exponential(1 / rate_per_s, size=NUM_DRAWN))
    prompts, outputs = (
        column[random.randint(0, len(column), size=NUM_DRAWN)]
        for column in (rows.num_prompt_tokens, rows.num_output_tokens)
    )
    num = int(np.searchsorted(arrival_s, SPAN_S))
    return traffic(arrival_s[:num], prompts[:num], outputs[:num])


def unloaded() -> Curves:
    """The published evaluation's reference: a DGX-A100."""
    return curves([row for row in all_rows() if row.key == (MODEL, A100, 8)])
