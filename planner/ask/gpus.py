"""Which GPUs there are: their kinds, how many of each, and how they sit in hosts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from core.errors import ConfigError, NoProfile
from planner.ask.inventory import FoundKind, found_kinds
from planner.ask.latency import Latency, Times, source_of
from planner.ask.model import Model
from planner.search.fleet import ANY_NUMBER, Fleet, Hardware, Rules
from planner.sim.spec import Network, Power
from policy.hardware import Gpu, catalogue

GBIT_BYTES = 1e9 / 8
CPU_WORKERS_PER_HOST = 64
"""Where a measured machine has no GPUs: its ranks share it."""
ANY_GPUS = 2**20
USD_PER_KWH = 0.15
"""What owned GPUs still cost: the power they may draw, at an industrial price of 2025 with the
cooling that comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAsk:
    """What the question says of GPUs."""

    kinds: tuple[str, ...] = ()
    """NAME, or NAME=N for at most N of them."""
    owned: tuple[str, ...] = ()
    """NAME=N: so many are there already, and cost their power alone."""
    inventories: tuple[Path, ...] = ()
    """Of hosts, in place of all the others: JSON of `baton inventory --out`."""
    num_gpus: int | None = None
    """Of all kinds; None: any number."""
    gpus_per_host: int | None = None
    """None: as the catalogue has it."""
    files: tuple[Path, ...] = ()
    """TOML in the form of the catalogue, which they override."""
    network_gbps: float | None = None
    """Of each host, per direction; None: as the catalogue has it."""
    layerwise_from_tokens: int | None = None
    """KV of prompts from this length on is sent layer by layer while they are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One kind of GPU that may be used."""

    name: str
    """Unique."""
    key: str
    gpu: Gpu
    num: int | None
    is_owned: bool


def fleet_of(ask: GpuAsk, times: Times, model: Model, rules: Rules) -> Fleet:
    """Raises ConfigError with every problem, or NoProfile."""
    if problems := tuple(_problems(ask, times)):
        raise ConfigError(problems)
    gpus = catalogue(*ask.files)
    kinds = [_kind(ask, gpus, text, is_owned=False) for text in ask.kinds]
    kinds += [_kind(ask, gpus, text, is_owned=True) for text in ask.owned]
    kinds += _found(found_kinds(ask.inventories, gpus))
    if not kinds:
        hardware = [_of_machine(ask, times, model)]
    else:
        hardware = [_hardware(ask, times, model, kind) for kind in kinds]
    if len({each.name for each in hardware}) < len(hardware):
        raise ConfigError(("the same kind of GPU is named twice",))
    return Fleet(hardware=tuple(hardware), network=_network(ask, kinds), rules=rules)


def find_gpu(text: str, gpus: dict[str, Gpu]) -> str:
    """The key of the catalogue that is meant: itself, or the only one with all parts of the text.

    Raises ConfigError where several have them, NoProfile where none has.
    """
    name = text.strip().lower()
    if name in gpus:
        return name
    parts = set(name.split("-"))
    found = [key for key in gpus if parts <= set(key.split("-"))]
    if not found:
        remedy = "describe it in a TOML file as policy/hardware.toml does, and give --hardware"
        raise NoProfile(f"the GPU {text!r}", tuple(gpus), remedy)
    if len(found) > 1:
        raise ConfigError((f"--gpu {text}: say which of {', '.join(found)}",))
    return found[0]


def _problems(ask: GpuAsk, times: Times) -> Iterator[str]:
    is_named = bool(ask.kinds or ask.owned)
    if not is_named and not ask.inventories and times.latency is not Latency.MEASURED:
        yield "--gpu is needed: which GPUs there are, for example h100-sxm"
    if ask.inventories and (is_named or ask.gpus_per_host is not None):
        yield "--inventory says which GPUs there are: leave out --gpu, --owned, --gpus-per-host"
    for name, value in (
        ("--gpus", ask.num_gpus),
        ("--gpus-per-host", ask.gpus_per_host),
        ("--layerwise-from", ask.layerwise_from_tokens),
        ("--max-instance-gpus", times.max_gpus),
        ("--num-blocks", times.num_blocks),
    ):
        if value is not None and value < 1:
            yield f"{name} must be at least 1, got {value}"
    if ask.network_gbps is not None and not ask.network_gbps > 0:
        yield f"--network-gbps must be above 0, got {ask.network_gbps:g}"


def _kind(ask: GpuAsk, gpus: dict[str, Gpu], text: str, *, is_owned: bool) -> _Kind:
    name, _, num = text.partition("=")
    option = "--owned" if is_owned else "--gpu"
    if (num or is_owned) and not (num.isdecimal() and int(num) >= 1):
        raise ConfigError((f"{option} must be NAME=N with N at least 1, got {text!r}",))
    key = find_gpu(name, gpus)
    gpu = gpus[key]
    if ask.gpus_per_host is not None:
        gpu = replace(gpu, gpus_per_host=ask.gpus_per_host)
    if num and int(num) > gpu.gpus_per_host and int(num) % gpu.gpus_per_host:
        raise ConfigError(
            (f"{option} {text}: hosts have {gpu.gpus_per_host} GPUs, and N has to be whole hosts",)
        )
    return _Kind(
        name=f"{key} owned" if is_owned else key,
        key=key,
        gpu=gpu,
        num=int(num) if num else None,
        is_owned=is_owned,
    )


def _found(kinds: Sequence[FoundKind]) -> list[_Kind]:
    """One of each; hosts with fewer or more of the same GPU are another kind."""
    keys = [kind.key for kind in kinds]
    return [
        _Kind(
            name=kind.key
            if keys.count(kind.key) == 1
            else f"{kind.key} {kind.gpu.gpus_per_host} per host",
            key=kind.key,
            gpu=kind.gpu,
            num=kind.num_hosts * kind.gpu.gpus_per_host,
            is_owned=False,
        )
        for kind in kinds
    ]


def _hardware(ask: GpuAsk, times: Times, model: Model, kind: _Kind) -> Hardware:
    most = min(kind.num or ANY_GPUS, ask.num_gpus or ANY_GPUS)
    gpu = kind.gpu
    # A host that is not full, where there are fewer GPUs than it could take.
    per_host = min(gpu.gpus_per_host, most)
    source = source_of(replace(times, most_gpus=most), model, kind.key, gpu)
    price = gpu.price_per_hour if gpu.currency == "USD" else 0.0
    if kind.is_owned:
        price = gpu.tdp_w / 1000 * USD_PER_KWH
    return Hardware(
        name=kind.name,
        source=source,
        gpus_per_host=per_host,
        num_hosts=ANY_NUMBER if most == ANY_GPUS else ceil(most / per_host),
        accelerator=gpu.ray_accelerator,
        price_usd_per_gpu_hour=price,
        power=Power(
            idle_w=gpu.idle_w,
            prefill_w=gpu.prefill_w,
            decode_w=gpu.decode_w,
            provisioned_w=gpu.tdp_w,
        ),
    )


def _of_machine(ask: GpuAsk, times: Times, model: Model) -> Hardware:
    """A measured machine that the catalogue need not know: neither price nor power."""
    source = source_of(times, model, "", None)
    per_host = ask.gpus_per_host or min(CPU_WORKERS_PER_HOST, ask.num_gpus or CPU_WORKERS_PER_HOST)
    num_hosts = ANY_NUMBER if ask.num_gpus is None else max(1, ceil(ask.num_gpus / per_host))
    return Hardware(name="measured", source=source, gpus_per_host=per_host, num_hosts=num_hosts)


def _network(ask: GpuAsk, kinds: Sequence[_Kind]) -> Network:
    """Of several kinds the slowest: one network joins all hosts."""
    gpus = [kind.gpu for kind in kinds]
    host = min((gpu.network_bytes_per_s * gpu.gpus_per_host for gpu in gpus), default=float("inf"))
    if ask.network_gbps is not None:
        host = ask.network_gbps * GBIT_BYTES
    network = Network(
        host_bytes_per_s=host,
        # Of one GPU: what joins the others of the host is not counted.
        local_bytes_per_s=min((gpu.link_bytes_per_s for gpu in gpus), default=float("inf")),
    )
    if ask.layerwise_from_tokens is None:
        return network
    return replace(network, layerwise_from_tokens=ask.layerwise_from_tokens)
