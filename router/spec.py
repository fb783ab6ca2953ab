"""What one router process is told."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.config import RouterConfig, WorkerConfig
from core.errors import ConfigError
from core.ids import RouterId
from core.json_tree import tree
from core.member import is_address
from core.profile import ALONE, LOADED, DecodeFit, PrefillFit, Profile
from policy.latency import LatencyModel, model_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What predictions start from; each instance is corrected by what is observed there."""

    prefill: PrefillFit = field(
        default_factory=lambda: PrefillFit(base_s=0.01, per_token_s=1e-3, per_pair_s=2e-7)
    )
    decode: DecodeFit = field(
        default_factory=lambda: DecodeFit(
            batches=(1, 64), batch_s=(0.02, 0.2), num_context_tokens=(0, 65_536), context_s=(0, 0.2)
        )
    )
    """The shape of a small model on a CPU: how long things are compared to each other."""

    def model(self) -> LatencyModel:
        """As predictions want it."""
        return model_of(self.prefill, self.decode, points=())


def speed_of(profile: Profile) -> Speed:
    """Of its first layout, on a busy machine where that was measured: others run there too."""
    conditions = {condition.name: condition for condition in profile.layouts[0].conditions}
    condition = conditions.get(LOADED, conditions[ALONE])
    return Speed(prefill=condition.prefill, decode=condition.decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Everything a router needs; travels as JSON to its process."""

    router_id: RouterId
    """Also its member id in the registry; unique in the cluster."""
    model_dir: Path
    """Of the model that is served: tokenizer and chat template are read."""
    registry_url: str
    """redis:// or rediss://."""
    cluster: str
    """Name of the cluster in the registry."""
    config: RouterConfig = field(default_factory=RouterConfig)
    speed: Speed = field(default_factory=Speed)
    host: str = "127.0.0.1"
    """Listened on, and told to others; empty: whoever starts it on a host says."""
    port: int = 0
    """Of gRPC; 0 takes any free one."""
    http_port: int = 0
    """Of OpenAI's API; 0 takes any free one."""
    max_decoding: int = WorkerConfig().max_running
    """Answers in one decode batch of an instance, for telling how full it is."""
    drain_s: float = 30.0
    """For requests under way when it is told to stop."""

    def __post_init__(self) -> None:
        """Refuse what no server can do."""
        problems = [f"config.{problem}" for problem in self.config.problems()]
        for port in (self.port, self.http_port):
            if port < 0 or not is_address(f"{self.host or 'localhost'}:{port or 1}"):
                problems.append(f"host and port are no address: {port}")
        if self.max_decoding < 1:
            problems.append(f"max_decoding must be at least 1, got {self.max_decoding}")
        if not 0 <= self.drain_s <= 86_400:
            problems.append(f"drain_s must be 0 to 86,400, got {self.drain_s}")
        if problems:
            raise ConfigError(tuple(problems))

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"model_dir": str(self.model_dir)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RouterSpec":
        """Of what `to_json` wrote. Raises ConfigError."""
        try:
            values: dict[str, Any] = json.loads(text)
            values["config"] = RouterConfig(**values["config"])
            problems: list[str] = []
            values["speed"] = tree(Speed, values["speed"], "speed", problems)
            if problems:
                raise ConfigError(tuple(problems))
            return cls(**{**values, "model_dir": Path(values["model_dir"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError((f"router spec: {error}",)) from error
