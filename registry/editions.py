"""The settings of a cluster, edition by edition: who put which one when."""

import json
from dataclasses import dataclass

from core.errors import BatonError, ConfigError
from core.settings import MAX_SETTINGS_BYTES

MAX_EDITIONS = 32
"""Kept, the newest last; older ones are forgotten."""
MAX_AUTHOR_CHARS = 128
MAX_ENTRY_BYTES = 2 * MAX_SETTINGS_BYTES + 4096
"""JSON escapes at most double the text of a sane document."""


class EditionConflict(BatonError):
    """Somebody else has put an edition since the one that this was made from."""

    status = "ABORTED"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """To be put."""

    text: str
    author: str
    """Who says so; for people, not for permissions."""
    restores: int = 0
    """The earlier version that this repeats; 0: none."""

    def payload(self) -> str:
        """As the store keeps it. Raises ConfigError past its bounds."""
        num_bytes = len(self.text.encode())
        if num_bytes > MAX_SETTINGS_BYTES or len(self.author) > MAX_AUTHOR_CHARS:
            raise ConfigError(
                (
                    f"settings of {num_bytes} bytes by {len(self.author)} characters, limits"
                    f" {MAX_SETTINGS_BYTES} and {MAX_AUTHOR_CHARS}",
                )
            )
        return json.dumps([self.author, self.restores, self.text], ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """As put."""

    version: int
    """From 1, without gaps."""
    at_s: float
    """The store's clock."""
    author: str
    restores: int
    text: str


def edition_of(entry: str) -> Edition | None:
    """What the store keeps, `version ms payload`; None when it is damaged."""
    try:
        version, ms, payload = entry.split(" ", 2)
        author, restores, text = json.loads(payload)
        return Edition(
            version=int(version),
            at_s=int(ms) / 1000,
            author=str(author),
            restores=int(restores),
            text=str(text),
        )
    except (ValueError, TypeError):
        return None


def entry_of(edition: Edition) -> str:
    """The same the other way."""
    draft = Draft(text=edition.text, author=edition.author, restores=edition.restores)
    return f"{edition.version} {round(edition.at_s * 1000)} {draft.payload()}"


def conflict(expected: int, found: int) -> EditionConflict:
    """The one error for it."""
    return EditionConflict(
        f"version {found} is in the store, expected {expected}: look at it first"
    )
