"""What a cluster's store holds that does not expire: what must survive the store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from core.errors import BatonError
from core.prefix import KEY_BYTES
from core.settings import MAX_SETTINGS_BYTES
from registry.deployment import deployment_problems
from registry.editions import MAX_AUTHOR_CHARS, MAX_EDITIONS, Draft, Edition
from registry.leader import Leader

MAX_VERSION = 2**53 - 1
"""Of settings: Lua counts in doubles."""


class ClusterNotEmpty(BatonError):
    """The store knows something of the cluster already, and was not to forget it."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """Deployment, settings, secret and last term. Members and leases announce themselves."""

    deployment: str | None = None
    settings_version: int = 0
    """Of the newest edition ever put; 0: none."""
    editions: tuple[Edition, ...] = ()
    """Of the settings, the newest last."""
    shared_key: bytes | None = field(default=None, repr=False)
    """The cluster's secret."""
    last_leader: Leader | None = None
    """Its term is the last one granted."""

    def problems(self) -> Iterator[str]:
        """What would keep a store from taking it, or giving it back."""
        yield from deployment_problems(self.deployment or "")
        if self.shared_key is not None and len(self.shared_key) != KEY_BYTES:
            yield f"shared_key of {len(self.shared_key)} bytes, must be {KEY_BYTES}"
        if not 0 <= self.settings_version <= MAX_VERSION:
            yield f"settings version must be 0 to {MAX_VERSION}, got {self.settings_version}"
        if len(self.editions) > MAX_EDITIONS:
            yield f"{len(self.editions)} editions, limit {MAX_EDITIONS}"
        versions = (0, *(edition.version for edition in self.editions), self.settings_version + 1)
        if any(a >= b for a, b in pairwise(versions)):
            yield "editions must be of growing versions, up to the settings version at most"
        for edition in self.editions:
            yield from _edition_problems(edition)

    def newest_again(self) -> Draft | None:
        """The settings to be in force, as another edition; None when there are none."""
        if not self.editions:
            return None
        newest = self.editions[-1]
        return Draft(text=newest.text, author=newest.author, restores=newest.version)


def not_empty() -> ClusterNotEmpty:
    """The one error for it."""
    return ClusterNotEmpty(
        "the store holds this cluster's deployment, settings, key, term or members already"
    )


def _edition_problems(edition: Edition) -> Iterator[str]:
    where, num_bytes = f"edition {edition.version}", len(edition.text.encode())
    if num_bytes > MAX_SETTINGS_BYTES:
        yield f"{where}: settings of {num_bytes} bytes, limit {MAX_SETTINGS_BYTES}"
    if len(edition.author) > MAX_AUTHOR_CHARS:
        yield f"{where}: author of {len(edition.author)} characters, limit {MAX_AUTHOR_CHARS}"
    if not 0 <= edition.restores <= MAX_VERSION:
        yield f"{where}: restores must be 0 to {MAX_VERSION}, got {edition.restores}"
    if not 0 <= edition.at_s <= MAX_VERSION / 1000:
        yield f"{where}: at_s must be 0 to {MAX_VERSION / 1000:g}, got {edition.at_s:g}"
