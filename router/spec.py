"""What one router process is told."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.config import RouterConfig
from core.errors import ConfigError
from core.ids import RouterId
from core.member import is_address


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
    host: str = "127.0.0.1"
    """Listened on, and told to others."""
    port: int = 0
    """0 takes any free one."""
    drain_s: float = 30.0
    """For requests under way when it is told to stop."""

    def __post_init__(self) -> None:
        """Refuse what no server can do."""
        problems = [f"config.{problem}" for problem in self.config.problems()]
        if self.port < 0 or not is_address(f"{self.host}:{self.port or 1}"):
            problems.append(f"host and port are no address: {self.port}")
        if not 0 <= self.drain_s < 86_400:
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
            config = RouterConfig(**values["config"])
            rest = {key: value for key, value in values.items() if key != "config"}
            return cls(**{**rest, "model_dir": Path(rest["model_dir"]), "config": config})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError((f"router spec: {error}",)) from error
