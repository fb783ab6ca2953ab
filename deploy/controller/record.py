"""What a controller must know to go on where another stopped; kept on disk and in the registry."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import ConfigError
from core.json_tree import loads
from core.member import Role
from core.plan_text import plan_text, with_replicas
from deploy.controller.deployment import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Where a router listens, so that the next one of its name does, too."""

    host: str
    port: int
    http_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One edition of the deployment; immutable."""

    edition: int
    """Counts up."""
    deployment: Deployment
    doors: Mapping[str, Doors] = field(default_factory=dict)
    """By name of the router."""
    sizes: Mapping[Role, int] = field(default_factory=dict)
    """Of pools, as online planning has changed them; empty: as the deployment's plan says."""

    @property
    def in_force(self) -> Deployment:
        """What the cluster is to be now."""
        if not self.sizes:
            return self.deployment
        plan = with_replicas(self.deployment.plan, self.sizes)
        text = plan_text(plan, ("sizes of pools as planned online from what was served",))
        return replace(self.deployment, plan_toml=text)

    def to_json(self) -> str:
        """One line."""
        doors = {name: [door.host, door.port, door.http_port] for name, door in self.doors.items()}
        document = {
            "edition": self.edition,
            "deployment": json.loads(self.deployment.to_json()),
            "doors": doors,
            "sizes": {role.value: num for role, num in self.sizes.items()},
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """What `to_json` wrote. Raises ConfigError."""
        try:
            document = loads(text)
            doors = {
                str(name): Doors(host=str(host), port=int(port), http_port=int(http_port))
                for name, (host, port, http_port) in document["doors"].items()
            }
            return cls(
                edition=int(document["edition"]),
                deployment=Deployment.from_json(json.dumps(document["deployment"])),
                doors=doors,
                sizes={Role(role): int(num) for role, num in document["sizes"].items()},
            )
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError((f"record: {type(error).__name__}: {error}",)) from error


def newest(texts: tuple[str | None, ...]) -> Record | None:
    """Of what registry and disk hold; one that cannot be read counts as none."""
    records = []
    for text in texts:
        try:
            records += [Record.from_json(text)] if text else []
        except ConfigError:
            continue
    return max(records, key=lambda record: record.edition, default=None)


class RecordFile:
    """The copy on disk: for the day when the registry comes back empty and nobody else knows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str | None:
        """None: there is none. What is damaged is no record, and no reason to end."""
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        """All of it, or nothing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        scratch.replace(self._path)

    def remove(self) -> None:
        """The cluster is no more."""
        self._path.unlink(missing_ok=True)
