"""From a candidate to the cluster that is simulated: kinds, hosts, network."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.errors import ConfigError
from core.parallel import ParallelLayout
from planner.search.hosts import Need, packed
from planner.search.results import Candidate, Goal, Pool
from planner.sim.spec import Cluster, Instance, Kind, Network, Power, Scheduling
from policy.latency_source import LatencySource
from policy.step_times import max_batch

ANY_NUMBER = 2**20
"""Of hosts: more than is ever planned for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """GPUs of one kind, as they are in hosts; and how fast the model is on them."""

    name: str
    source: LatencySource
    gpus_per_host: int = 8
    num_hosts: int = ANY_NUMBER
    """That can be had."""
    accelerator: str = ""
    """Ray's name of the chip, which several kinds may share; empty: not known."""
    price_usd_per_gpu_hour: float = 0.0
    power: Power = field(default_factory=Power)
    """Of one GPU with its share of the host."""

    @property
    def instance_type(self) -> str:
        """What a plan calls places on it."""
        return self.name.replace(" ", "-")

    @property
    def num_gpus(self) -> int:
        """That can be had."""
        return self.gpus_per_host * self.num_hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What instances and the router are set to, whatever the layout."""

    max_batch: int = 256
    """Answers in one step; fewer where a latency model knows no more."""
    step_tokens: int = 2048
    """Prompt tokens of one step (L_m)."""
    chunk_tokens: int = 512
    """Tokens of any step of an instance that reads prompts in chunks."""
    cache_tokens_share: float = 0.0
    """Of an instance's KV room, kept for prompts that begin alike; taken off what answers have."""
    reserves_output: bool = False
    """Room for whole answers is taken when they begin."""
    placement: str = "slo"
    pairs_at_arrival: bool = True
    max_ttft_s: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What clusters can be built of."""

    hardware: tuple[Hardware, ...]
    network: Network = field(default_factory=Network)
    rules: Rules = field(default_factory=Rules)

    def __getitem__(self, name: str) -> Hardware:
        return next(each for each in self.hardware if each.name == name)


def kind_of(fleet: Fleet, pool: Pool) -> Kind:
    """What the instances of a pool have in common."""
    hardware, layout, rules = fleet[pool.hardware], pool.layout, fleet.rules
    times = hardware.source.times(layout)
    capacity = hardware.source.capacity_tokens(layout)
    cache_tokens = int(rules.cache_tokens_share * capacity)
    is_chunked = pool.scheduling is Scheduling.CHUNKED
    return Kind(
        name=str(replace(pool, num=1)),
        times=times,
        num_gpus=layout.num_workers,
        capacity_tokens=capacity - cache_tokens,
        max_batch=min(rules.max_batch, max_batch(times)),
        step_tokens=rules.chunk_tokens if is_chunked else rules.step_tokens,
        scheduling=pool.scheduling,
        reserves_output=rules.reserves_output,
        kv_bytes_per_token=hardware.source.kv_bytes_per_token,
        num_layers=hardware.source.num_layers,
        cache_tokens=cache_tokens,
        price_usd_per_hour=hardware.price_usd_per_gpu_hour * layout.num_workers,
        power=_scaled(hardware.power, layout),
    )


def _scaled(power: Power, layout: ParallelLayout) -> Power:
    num = layout.num_workers
    return Power(
        idle_w=num * power.idle_w,
        prefill_w=num * power.prefill_w,
        decode_w=num * power.decode_w,
        provisioned_w=num * power.provisioned_w,
    )


def cluster_of(fleet: Fleet, candidate: Candidate) -> Cluster:
    """The whole of it. Raises ConfigError where the hosts do not suffice."""
    hosts = hosts_of(fleet, candidate)
    if hosts is None:
        raise ConfigError((f"{candidate} does not fit into the hosts there are",))
    kinds = tuple(kind_of(fleet, pool) for pool in candidate.pools)
    places = [(k, pool.role) for k, pool in enumerate(candidate.pools) for _ in range(pool.num)]
    network = fleet.network
    if candidate.num_segments:
        # Every segment's KV moves within its own host, all at the same time.
        local = network.local_bytes_per_s * candidate.num_segments
        network = replace(network, local_bytes_per_s=local)
    rules = fleet.rules
    return Cluster(
        kinds=kinds,
        instances=tuple(
            Instance(kind=kind, role=role, host=host)
            for (kind, role), host in zip(places, hosts, strict=True)
        ),
        network=network,
        placement=rules.placement,
        pairs_at_arrival=rules.pairs_at_arrival,
        max_ttft_s=rules.max_ttft_s,
    )


def hosts_of(fleet: Fleet, candidate: Candidate) -> tuple[int, ...] | None:
    """Of each instance, pool by pool; None where there are too few."""
    if candidate.num_segments:
        return _hosts_of_units(fleet, candidate)
    instances = [pool for pool in candidate.pools for _ in range(pool.num)]
    hosts, first = [0] * len(instances), 0
    for hardware in fleet.hardware:
        numbers = [n for n in _mixed_order(candidate) if instances[n].hardware == hardware.name]
        needs = [_need(instances[n]) for n in numbers]
        found = packed(needs, hardware.gpus_per_host, hardware.num_hosts)
        if found is None:
            return None
        for number, host in zip(numbers, found, strict=True):
            hosts[number] = first + host
        first += max(found, default=-1) + 1
    return tuple(hosts)


def _mixed_order(candidate: Candidate) -> list[int]:
    """Pools are spread alike over the hosts: prompts and answers then share the links of all, and
    some KV need not leave its host."""
    places = [(k + 0.5) / pool.num for pool in candidate.pools for k in range(pool.num)]
    return sorted(range(len(places)), key=lambda number: places[number])


def _need(pool: Pool) -> Need:
    return Need(num_stages=pool.layout.pp, gpus_per_stage=pool.layout.tp)


def _hosts_of_units(fleet: Fleet, candidate: Candidate) -> tuple[int, ...] | None:
    """The k-th instance of each pool together."""
    prefill, decode = candidate.pools
    hardware = fleet[prefill.hardware]
    per_segment = prefill.layout.num_workers + decode.layout.num_workers
    need = Need(
        num_stages=candidate.num_segments, gpus_per_stage=per_segment // candidate.num_segments
    )
    found = packed([need] * prefill.num, hardware.gpus_per_host, hardware.num_hosts)
    return None if found is None else found * 2


def usd_per_hour(cluster: Cluster) -> float:
    """Of all instances."""
    return sum(cluster.kinds[each.kind].price_usd_per_hour for each in cluster.instances)


def provisioned_w(cluster: Cluster) -> float:
    """Watts that have to be installed for all instances."""
    return sum(cluster.kinds[each.kind].power.provisioned_w for each in cluster.instances)


def spent(fleet: Fleet, candidate: Candidate, goal: Goal) -> float:
    """Of what the goal saves: GPUs, USD per hour, or watts installed."""
    total = 0.0
    for pool in candidate.pools:
        hardware = fleet[pool.hardware]
        each = {
            Goal.COST: hardware.price_usd_per_gpu_hour,
            Goal.POWER: hardware.power.provisioned_w,
        }
        total += pool.num_gpus * each.get(goal, 1.0)
    return total


def without(cluster: Cluster, lost: Sequence[int]) -> Cluster | None:
    """The cluster once these instances are gone; None where one of the phases has nobody left."""
    gone = frozenset(lost)
    left = tuple(e for number, e in enumerate(cluster.instances) if number not in gone)
    reduced = replace(cluster, instances=left, changes=())
    return None if tuple(reduced.problems()) else reduced


def losses(cluster: Cluster) -> tuple[tuple[int, ...], ...]:
    """Instances that go together when a host is lost: one host for each different set of kinds and
    roles, since hosts that hold the same are worth the same."""
    by_host: dict[int, list[int]] = {}
    for number, instance in enumerate(cluster.instances):
        by_host.setdefault(instance.host, []).append(number)
    different: dict[tuple[tuple[int, str], ...], tuple[int, ...]] = {}
    for numbers in by_host.values():
        held = tuple(sorted(_what(cluster, number) for number in numbers))
        different.setdefault(held, tuple(numbers))
    return tuple(different.values())


def _what(cluster: Cluster, number: int) -> tuple[int, str]:
    instance = cluster.instances[number]
    return instance.kind, instance.role.value
