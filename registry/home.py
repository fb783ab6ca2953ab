"""Where an embedded Valkey server lives: its folder, its address, its password."""

import re
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from core.errors import ConfigError
from core.member import is_address

RAY_PORTS = range(10002, 20000)
"""Ray gives these to its workers and is not pleased to find one taken."""
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyHome:
    """What stays the same from one start of a server to the next; valid or not built."""

    folder: Path
    """Of its data and log; made when it is missing. One server at a time."""
    host: str
    """Name or address it listens on, and is reached at."""
    port: int
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what would say something else in a server's configuration, or in a URL."""
        problems = []
        if not is_address(self.address):
            problems.append(f"host and port must be an address, got {self.address!r:.300}")
        if not _PASSWORD.fullmatch(self.password):
            problems.append("password must be 16 to 128 of letters, digits and _-")
        if not str(self.folder).isprintable():
            problems.append("folder holds characters that cannot be printed")
        if problems:
            raise ConfigError(tuple(problems))

    @classmethod
    def new(cls, folder: Path, host: str) -> Self:
        """With a port that is free now and a random password. Raises OSError for a foreign host."""
        password = secrets.token_urlsafe(24)
        return cls(folder=folder, host=host, port=free_port(host), password=password)

    @property
    def address(self) -> str:
        """host:port, without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """With the password: for `connect`, never for a log."""
        return f"redis://:{self.password}@{self.address}/0"

    def config(self, template: str) -> str:
        """The server's configuration."""
        # Quoted, as the server reads it: a folder's name may hold blanks.
        folder = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        return template.format(
            host=self.host, port=self.port, password=self.password, folder=folder
        )


def free_port(host: str) -> int:
    """Nobody listens on it at `host`, and Ray will not want it."""
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    while True:
        with socket.socket(family) as probe:
            probe.bind(address)
            port: int = probe.getsockname()[1]
        if port not in RAY_PORTS:
            return port
