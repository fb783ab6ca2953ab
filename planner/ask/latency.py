"""Which latency model answers for a model on a GPU: computed, measured here, or published."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.errors import ConfigError, NoProfile
from core.profile import ALONE, LOADED, Profile
from core.profile import load as load_profile
from planner.ask.model import Model
from policy.distserve import DistServe
from policy.hardware import Gpu
from policy.latency_source import LatencySource
from policy.measured import Measured
from policy.roofline import Roofline
from policy.splitwise import Splitwise


class Latency(StrEnum):
    """What times rest on."""

    ROOFLINE = "roofline"
    """Data sheets; any model on any GPU."""
    MEASURED = "measured"
    """A profile.json of `baton profile`."""
    DISTSERVE = "distserve"
    """DistServe's published parameters of its engine: OPT on A100."""
    VLLM = "vllm"
    """The same authors' of the vLLM of their time."""
    SPLITWISE = "splitwise"
    """A fit to Splitwise's published table: BLOOM-176B and Llama-2-70B on A100 and H100."""


PUBLISHED_ON: Mapping[Latency, Mapping[str, str]] = {
    Latency.DISTSERVE: {"a100-80g-sxm": ""},
    Latency.VLLM: {"a100-80g-sxm": ""},
    Latency.SPLITWISE: {"a100-80g-sxm": "a100-80gb", "h100-80g-sxm": "h100-80gb"},
}
"""GPUs by their keys in the catalogue, and what the publication calls them."""
LEAST_USE = 0.7
"""Share of an instance's memory that weights may take: the rest is for KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What the question says of a latency model."""

    latency: Latency = Latency.ROOFLINE
    profile: Path | None = None
    num_blocks: int = 1024
    """KV blocks of one instance, of a measured engine."""
    max_gpus: int | None = None
    """Of one instance; None: a host, and more only where the weights need more."""
    most_gpus: int = 8
    """There are."""
    step_tokens: int = 2048
    """Prompt tokens of one step that memory is kept free for."""


def source_of(times: Times, model: Model, key: str, gpu: Gpu | None) -> LatencySource:
    """For one kind of GPU. Raises ConfigError, or NoProfile with what there is."""
    match times.latency:
        case Latency.MEASURED:
            return measured(times, model)
        case Latency.DISTSERVE | Latency.VLLM | Latency.SPLITWISE:
            return _published(times.latency, model.shape.name, key)
    if gpu is None:
        raise ConfigError(("--gpu is needed: the roofline computes times of a GPU",))
    return Roofline(
        shape=model.shape,
        gpu=gpu,
        max_gpus=min(times.most_gpus, times.max_gpus or _enough_gpus(model, gpu)),
        step_tokens=times.step_tokens,
    )


def measured(times: Times, model: Model) -> Measured:
    """What `baton profile` found. Raises ConfigError, NoProfile."""
    if times.profile is None:
        remedy = "make one with `baton profile`, and give it with --profile"
        raise NoProfile(f"{model.shape.name} that was measured", (), remedy)
    try:
        profile = load_profile(times.profile)
    except FileNotFoundError:
        there_is = tuple(sorted(path.name for path in times.profile.parent.glob("*.json")))
        raise NoProfile(str(times.profile), there_is, "make it with `baton profile`") from None
    return Measured(
        profile=profile,
        shape=model.shape,
        num_blocks=times.num_blocks,
        condition=condition_of(profile),
    )


def condition_of(profile: Profile) -> str:
    """With neighbours at work where instances share a processor; a GPU is one instance's own."""
    is_known = all(LOADED in [c.name for c in each.conditions] for each in profile.layouts)
    return LOADED if profile.subject.device == "cpu" and is_known else ALONE


def _published(latency: Latency, model: str, key: str) -> LatencySource:
    hardware = PUBLISHED_ON[latency]
    if key not in hardware:
        remedy = "compute it with --latency roofline, or measure it with `baton profile`"
        raise NoProfile(f"{model} on {key} from {latency}", tuple(hardware), remedy)
    if latency is Latency.SPLITWISE:
        return Splitwise(model=model, hardware=hardware[key])
    return DistServe(model=model, engine=latency.value)


def _enough_gpus(model: Model, gpu: Gpu) -> int:
    """A host's, doubled until the weights leave room."""
    num = gpu.gpus_per_host
    while model.shape.weight_bytes > LEAST_USE * num * gpu.memory_bytes:
        num *= 2
    return num
