"""The GPUs that the planner knows, and what a user's file says otherwise."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.config import build
from core.errors import ConfigError, NoProfile

DECODE_POWER_SHARE = 0.62
"""Of its thermal design power that a GPU draws in runs of mostly decode steps: BLOOM-176B on A100
in Splitwise's table, whatever the batch. Prefill steps of 1,024 tokens and more draw all of it."""
CATALOGUE = files("policy") / "hardware.toml"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "spec_source": (
        "bf16_flops_per_s",
        "fp8_flops_per_s",
        "int8_ops_per_s",
        "memory_bytes_per_s",
        "link",
        "link_bytes_per_s",
        "gpus_per_host",
        "tdp_w",
    ),
    "memory_source": ("memory_bytes",),
    "network_source": ("network_bytes_per_s",),
    "idle_source": ("idle_w",),
    "price_source": ("price_per_hour", "currency"),
}
"""Which fields each source speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as a host has it; peaks of a data sheet, which nothing reaches."""

    name: str
    bf16_flops_per_s: float
    """Dense; float16 is the same everywhere here."""
    memory_bytes: int
    """As its driver prints, before anything runs."""
    memory_bytes_per_s: float
    link: str
    """What joins the GPUs of a host."""
    link_bytes_per_s: float
    """Per direction, to all others together."""
    network_bytes_per_s: float
    """This GPU's share of its host's network, per direction."""
    tdp_w: float
    idle_w: float
    """With a process on it that waits."""
    fp8_flops_per_s: float = 0.0
    """0: no such units; bfloat16's are used."""
    int8_ops_per_s: float = 0.0
    gpus_per_host: int = 8
    nvml_name: str = ""
    """As its driver names it, on a host; empty: not known."""
    ray_accelerator: str = ""
    """As Ray names its chip, of which there may be several kinds; empty: not known."""
    price_per_hour: float = 0.0
    """0: not known."""
    currency: str = "USD"
    spec_source: str
    memory_source: str
    network_source: str
    idle_source: str
    price_source: str

    @property
    def prefill_w(self) -> float:
        """While a step with prompts runs."""
        return self.tdp_w

    @property
    def decode_w(self) -> float:
        """While a step of answers alone runs."""
        return max(self.idle_w, DECODE_POWER_SHARE * self.tdp_w)

    def flops_per_s(self, weight_dtype: str) -> float:
        """Peak of matrix products with weights of this type (see `policy.model_shape`).

        int4 weights are unpacked and multiplied in bfloat16; float32 goes through TF32 units,
        which do half of bfloat16's rate.
        """
        rates = {
            "float32": self.bf16_flops_per_s / 2,
            "fp8": self.fp8_flops_per_s,
            "int8": self.int8_ops_per_s,
        }
        return rates.get(weight_dtype) or self.bf16_flops_per_s

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        positive = ("bf16_flops_per_s", "memory_bytes", "memory_bytes_per_s", "link_bytes_per_s")
        for name in (*positive, "network_bytes_per_s", "tdp_w", "gpus_per_host"):
            if not getattr(self, name) > 0:
                yield f"{name} must be above 0, got {getattr(self, name)}"
        for name in ("fp8_flops_per_s", "int8_ops_per_s", "idle_w", "price_per_hour"):
            if not getattr(self, name) >= 0:
                yield f"{name} must be at least 0, got {getattr(self, name)}"
        if self.idle_w > self.tdp_w:
            yield f"idle_w must not be above tdp_w, got {self.idle_w} and {self.tdp_w}"


def catalogue(*overrides: Path) -> dict[str, Gpu]:
    """By key; later files replace single fields of known GPUs, or add whole ones.

    Raises ConfigError with every problem.
    """
    problems: list[str] = []
    tables = _tables(CATALOGUE.read_text(encoding="utf-8"), "hardware.toml", problems)
    for path in overrides:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            problems.append(f"{path}: {error}")
            continue
        for key, table in _tables(text, str(path), problems).items():
            tables[key] = {**tables.get(key, {}), **_sourced(table, path.name)}
    found = {key: build(Gpu, table, f"gpus.{key}", problems) for key, table in tables.items()}
    gpus = {key: gpu for key, gpu in found.items() if gpu is not None}
    problems += [f"gpus.{key}: {text}" for key, gpu in gpus.items() for text in gpu.problems()]
    if problems:
        raise ConfigError(tuple(problems))
    return gpus


def gpu(key: str, *overrides: Path) -> Gpu:
    """One of the catalogue. Raises NoProfile, or ConfigError for a file that cannot be used."""
    gpus = catalogue(*overrides)
    if key not in gpus:
        remedy = "describe it in a file as `policy/hardware.toml` does, and give that"
        raise NoProfile(f"hardware {key!r}", tuple(gpus), remedy)
    return gpus[key]


def _tables(text: str, where: str, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The tables under `gpus`, sources spelled out; more `problems` where there are some."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{where}: {error}")
        return {}
    known = {"sources", "gpus"}
    problems += [f"{where}: unknown key {key!r}" for key in document if key not in known]
    tables = {name: document.get(name, {}) for name in known}
    wrong = [name for name, table in tables.items() if not isinstance(table, dict)]
    wrong += [f"gpus.{key}" for key, table in _items(tables["gpus"]) if not isinstance(table, dict)]
    if wrong:
        problems += [f"{where}: {name} must be a table" for name in wrong]
        return {}
    sources = tables["sources"]
    return {
        key: {name: _spelled(name, value, sources) for name, value in table.items()}
        for key, table in tables["gpus"].items()
    }


def _items(table: object) -> list[tuple[str, Any]]:
    return list(table.items()) if isinstance(table, dict) else []


def _spelled(name: str, value: object, sources: Mapping[str, object]) -> object:
    """A source by its key in the file, or as it is."""
    return sources.get(value, value) if name in GROUPS and isinstance(value, str) else value


def _sourced(table: dict[str, Any], file_name: str) -> dict[str, Any]:
    """A number that a user gives without a source is theirs."""
    given = {
        source: file_name
        for source, names in GROUPS.items()
        if source not in table and any(name in table for name in names)
    }
    return {**given, **table}
