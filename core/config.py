"""The configuration tree: frozen, read once from one TOML file, all problems reported at once."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from core.errors import ConfigError
from core.failpoints import Failpoints
from core.kv_layout import CARRIERS, UNBUILT_CARRIERS, WIRE_FORMATS
from core.limits import DEFAULT_MAX_QUEUED
from core.model_spec import WEIGHTS

T = TypeVar("T")

OVERLAPS = ("adaptive", "whole", "layerwise")
"""See HandoffConfig.overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What one rank computes with."""

    dtype: str = "float32"
    """float32, bfloat16 or float16. On CPUs without AMX, float32 is the fastest."""
    device: str = "cpu"
    """cpu or cuda."""
    weights: str = "stored"
    """stored: as the checkpoint has them, in `dtype`. int8: linear layers rounded to 8 bits, on a
    CPU in float32 only. Steps of few answers get faster and answers change: not exact."""
    block_size: int = 16
    """Token positions per KV block."""
    num_blocks: int = 1024
    """KV blocks per instance; times block_size is the tokens it can hold."""
    num_threads: int = 1
    """Threads of one forward pass on a CPU."""
    prefix_cache: bool = True
    """Keep the KV of ended requests while nobody needs the room, and start from it."""
    num_swap_blocks: int = 256
    """KV blocks' worth of host memory for answers that have to make room; 0: they are computed
    again elsewhere."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.dtype not in ("float32", "bfloat16", "float16"):
            yield f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}"
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            yield f"device must be cpu or cuda, got {self.device!r}"
        if self.weights not in WEIGHTS:
            yield f"weights must be {' or '.join(WEIGHTS)}, got {self.weights!r}"
        if self.weights == "int8" and (self.device, self.dtype) != ("cpu", "float32"):
            yield f"weights int8 need device cpu and float32, got {self.device} and {self.dtype}"
        yield from _at_least(self, 1, "block_size", "num_blocks", "num_threads")
        yield from _at_least(self, 0, "num_swap_blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How an instance schedules and how long it waits for others."""

    prefill_step_tokens: int = 256
    """Prompt tokens per step on a prefill instance. Higher buys throughput and costs TTFT."""
    mixed_step_tokens: int = 64
    """Tokens of a step in which answers run on a decode or mixed instance: each answer takes one,
    prompt chunks fill the rest (Sarathi-Serve's budget). Higher buys TTFT and costs TPOT."""
    max_running: int = 64
    """Requests in one decode batch."""
    max_queued: int = DEFAULT_MAX_QUEUED
    """Requests waiting for prefill, and handoffs waiting on decode, each; more are refused."""
    max_unacked_tokens: int = 65_536
    """Output tokens kept for one router that does not read; its requests end beyond."""
    ageing_s: float = 10.0
    """Waiting this long counts as much as one step of priority."""
    router_grace_s: float = 5.0
    """How long requests outlive their router's subscription."""
    beat_s: float = 1.0
    """At most this long between two frames to a subscribed router."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from _at_least(
            self,
            1,
            "prefill_step_tokens",
            "mixed_step_tokens",
            "max_running",
            "max_queued",
            "max_unacked_tokens",
        )
        yield from _above_zero(self, "ageing_s", "router_grace_s", "beat_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffConfig:
    """Leases, segments and patience of the KV handoff."""

    lease_ttl_s: float = 10.0
    """How long unclaimed KV is kept; the reader renews at a third of it."""
    unknown_handoff_wait_s: float = 5.0
    """How long a Fetch waits for its Prefill call."""
    progress_timeout_s: float = 5.0
    """No byte for this long, with credit granted: the link has stalled."""
    retarget_wait_s: float = 10.0
    """How long decode keeps a reservation whose prefill was lost."""
    max_refetches: int = 3
    """Damaged segments fetched again before the attempt is given up."""
    max_segment_bytes: int = 2 * 1024 * 1024
    """Payload of one segment at most."""
    overlap: str = "adaptive"
    """When KV leaves a prefill. whole: with the last layer of a chunk; layerwise: with every layer.
    adaptive: in as many groups of layers as what was measured makes cheapest."""
    carrier: str = "auto"
    """What carries payloads to here: shm, torchdist or grpc; where it cannot, grpc does.
    auto: the best for each pair."""
    wire_format: str = "stored"
    """How KV is written on the wire: "int8" is about a quarter of float32, and not exact."""

    failpoints: str = ""
    """Faults to plant, for tests: see core/failpoints.py."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from _above_zero(
            self, "lease_ttl_s", "unknown_handoff_wait_s", "progress_timeout_s", "retarget_wait_s"
        )
        yield from _at_least(self, 0, "max_refetches")
        yield from _at_least(self, 4096, "max_segment_bytes")
        if self.overlap not in OVERLAPS:
            yield f"overlap must be of {', '.join(OVERLAPS)}, got {self.overlap!r}"
        if self.carrier in UNBUILT_CARRIERS:
            yield f"carrier {self.carrier} is not built yet: KV moves through host memory; use auto"
        elif self.carrier not in ("auto", *CARRIERS):
            yield f"carrier must be auto or of {', '.join(CARRIERS)}, got {self.carrier!r}"
        if self.wire_format not in WIRE_FORMATS:
            yield f"wire_format must be of {', '.join(WIRE_FORMATS)}, got {self.wire_format!r}"
        try:
            Failpoints.parse(self.failpoints)
        except ConfigError as error:
            yield from error.problems
        if self.max_segment_bytes > 4 * 1024 * 1024:
            yield f"max_segment_bytes must be at most 4 MiB, got {self.max_segment_bytes}"


POLICIES = (
    "slo",
    "jsq",
    "shortest_queue",
    "prefix_aware",
    "power_of_two",
    "round_robin",
    "random",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Admission, patience and recovery of a router."""

    max_running: int = 256
    """Requests placed at once; more wait."""
    max_queued: int = 1024
    """Requests waiting for admission; more are refused with RESOURCE_EXHAUSTED."""
    ageing_s: float = 10.0
    """Waiting this long for admission counts as much as one step of priority."""
    default_timeout_s: float = 600.0
    """Deadline of requests that name none."""
    max_attempts: int = 8
    """How often one request is placed before it fails."""
    max_client_buffer_bytes: int = 64 * 1024
    """What a slow reader may leave unread before it is paused, then ended."""
    client_stall_s: float = 30.0
    """How long a reader may read nothing while its buffer is full."""
    silence_s: float = 3.0
    """No frame from an instance for this long: it is lost (beats come every second)."""
    policy: str = "slo"
    """Placement policy; docs/policies.md says when each wins."""
    slo_ttft_s: float = 0.0
    """Target for the time to the first token: a request that is predicted to miss it is refused at
    the door; 0: no target."""
    slo_tpot_s: float = 0.0
    """Target for the time per token after it: no more answers run at once than it allows, the rest
    wait for admission; 0: no target."""
    help_above_s: float = 1.0
    """A request would wait so long in the best place of its pool: an instance of the other pool
    helps, until a quarter of it."""
    max_local_prefill_tokens: int = 0
    """A decode instance may read a prompt itself, where that is predicted to be cheaper, when it
    does not cache at most so many of its tokens; 0: never."""
    otlp_endpoint: str = ""
    """URL of an OpenTelemetry collector, for example http://localhost:4318: it gets a trace of each
    request over OTLP/HTTP; empty: nobody does."""
    trace_sample_ratio: float = 1.0
    """Share of requests that are traced, 0 to 1, where their callers have not decided it. A trace
    costs its router about a millisecond of processor time."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from _at_least(
            self, 1, "max_running", "max_queued", "max_attempts", "max_client_buffer_bytes"
        )
        yield from _above_zero(
            self, "ageing_s", "default_timeout_s", "client_stall_s", "silence_s", "help_above_s"
        )
        yield from _at_least(self, 0, "max_local_prefill_tokens", "slo_ttft_s", "slo_tpot_s")
        if self.policy not in POLICIES:
            yield f"policy must be of {', '.join(POLICIES)}, got {self.policy!r}"
        if self.otlp_endpoint and not _is_http_url(self.otlp_endpoint):
            yield f"otlp_endpoint must be an http:// or https:// URL, got {self.otlp_endpoint!r}"
        if not 0 <= self.trace_sample_ratio <= 1:
            yield f"trace_sample_ratio must be 0 to 1, got {self.trace_sample_ratio}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything one cluster is told, but for its plan."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    handoff: HandoffConfig = field(default_factory=HandoffConfig)
    router: RouterConfig = field(default_factory=RouterConfig)

    def problems(self) -> Iterator[str]:
        """What is wrong anywhere in the tree."""
        for part in fields(self):
            for problem in getattr(self, part.name).problems():
                yield f"{part.name}.{problem}"


def load(path: Path) -> Config:
    """Read one TOML file. Raises ConfigError with every unknown key and every problem."""
    return parse(path.read_text(encoding="utf-8"), str(path))


def parse(text: str, name: str = "config") -> Config:
    """Read TOML text; see `load`."""
    return parse_as(Config, text, name)


class Checked(Protocol):
    """A dataclass that can tell what is wrong with it."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        ...


C = TypeVar("C", bound=Checked)


def parse_as(cls: type[C], text: str, name: str) -> C:
    """Read the dataclass `cls` from TOML text. Raises ConfigError with every problem."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((f"{name}: {error}",)) from error
    problems: list[str] = []
    tree = build(cls, document, name, problems)
    if tree is not None:
        problems += [f"{name}: {problem}" for problem in tree.problems()]
    if problems or tree is None:
        raise ConfigError(tuple(problems))
    return tree


def build(cls: type[T], table: Mapping[str, Any], where: str, problems: list[str]) -> T | None:
    """Make the dataclass `cls` of a TOML table; None, and more `problems`, when it cannot be."""
    types = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    before = len(problems)
    problems += [f"{where}: unknown key {key!r}" for key in table if key not in known]
    values: dict[str, Any] = {}
    for key in known & table.keys():
        values[key] = _value(types[key], table[key], f"{where}: {key}", problems)
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except TypeError as error:
        problems.append(f"{where}: {error}")
        return None


def _value(kind: object, value: object, where: str, problems: list[str]) -> object:
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return build(kind, value, where, problems)
    if get_origin(kind) is dict and isinstance(value, Mapping):
        item = get_args(kind)[1]
        return {key: _value(item, v, f"{where}.{key}", problems) for key, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        wanted = getattr(kind, "__name__", str(kind))
        problems.append(f"{where} must be {wanted}, got {type(value).__name__} {value!r}")
    return value


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        return False


def _at_least(node: object, limit: int, *names: str) -> Iterator[str]:
    for name in names:
        if (value := getattr(node, name)) < limit:
            yield f"{name} must be at least {limit}, got {value}"


def _above_zero(node: object, *names: str) -> Iterator[str]:
    for name in names:
        if not (value := getattr(node, name)) > 0:
            yield f"{name} must be above 0, got {value}"
