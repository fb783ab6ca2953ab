"""What a cluster is told to be: its plan, and all that its processes are started with."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from core.config import Config, build
from core.errors import ConfigError
from core.json_tree import loads, tree
from core.logs import LogFormat
from core.plan import Plan, PoolPlan, parse_plan
from router.spec import Speed

SCHEMA = 1
MAX_DEPLOYMENT_BYTES = 1024 * 1024
"""A plan of thousands of instances is some hundred KiB of TOML."""
MAKE_DIGITS = 8
"""Of a hex digest: for people to compare; a cluster has a handful of makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A plan and its settings. Two equal ones make equal processes."""

    plan_toml: str
    """As its author wrote it."""
    model: str = ""
    """Folder, .gguf file, hf:ORG/NAME@COMMIT; empty: the default model. Every host looks for it."""
    config: Config = field(default_factory=Config)
    speed: Speed = field(default_factory=Speed)
    profile_json: str = ""
    """Of `baton profile`: what online planning rests on, unless the plan names a GPU."""
    log_level: str = "WARNING"
    log_format: str = LogFormat.TEXT.value

    @property
    def plan(self) -> Plan:
        """Raises ConfigError."""
        return parse_plan(self.plan_toml)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        try:
            _ = self.plan
        except ConfigError as error:
            yield from error.problems
        yield from (f"config.{problem}" for problem in self.config.problems())
        if self.log_format not in set(LogFormat):
            yield f"log_format must be of {', '.join(LogFormat)}, got {self.log_format!r}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": SCHEMA} | asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Deployment":
        """What `to_json` wrote. Raises ConfigError with every problem."""
        document = _document(text)
        problems: list[str] = []
        if document.pop("schema", SCHEMA) != SCHEMA:
            problems.append(f"deployment: schema must be {SCHEMA}")
        config = build(Config, _table(document.get("config", {})), "config", problems)
        speed = tree(Speed, document.get("speed", {}), "speed", problems)
        # In place of what cannot be read: so that the rest is looked at, too.
        document["config"] = config or Config()
        document["speed"] = speed if isinstance(speed, Speed) else Speed()
        deployment = build(cls, document, "deployment", problems)
        problems += [] if deployment is None else deployment.problems()
        if problems or deployment is None:
            raise ConfigError(tuple(problems))
        return deployment


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(("deployment: config must be an object",))
    return value


def _document(text: str) -> dict[str, object]:
    if len(text.encode()) > MAX_DEPLOYMENT_BYTES:
        raise ConfigError((f"deployment of {len(text)} bytes, limit {MAX_DEPLOYMENT_BYTES}",))
    try:
        document = loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(("deployment: not JSON",)) from None
    if not isinstance(document, dict):
        raise ConfigError(("deployment: not a JSON object",))
    return document


def instance_make(deployment: Deployment, pool: PoolPlan) -> str:
    """Digest of all that an instance of this pool is started with but its role and its place.

    Two instances of one make can change places; a role change needs no more than that.
    """
    config = asdict(deployment.config)
    del config["router"]
    return _digest(
        {
            "model": deployment.model,
            "model_name": deployment.plan.model_name,
            "config": config,
            "layout": asdict(pool.layout),
            "type": asdict(deployment.plan.type_of(pool)),
            "logs": [deployment.log_level, deployment.log_format],
        }
    )


def router_make(deployment: Deployment) -> str:
    """The same, of a router."""
    return _digest(
        {
            "model": deployment.model,
            "config": asdict(deployment.config.router),
            "speed": asdict(deployment.speed),
            "max_decoding": deployment.config.worker.max_running,
            "ports": [deployment.plan.router.port, deployment.plan.router.http_port],
            "logs": [deployment.log_level, deployment.log_format],
        }
    )


def _digest(parts: dict[str, object]) -> str:
    # 0 and 0.0 are equal, and one becomes the other on its way through JSON.
    plain = json.loads(json.dumps(parts), parse_int=float)
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:MAKE_DIGITS]
