"""The settings in force: follows the registry's editions and applies each to the running router."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from core.errors import ConfigError
from core.settings import Settings, parse_settings
from core.waiting import wait_at_most
from registry.api import Registry, RegistryUnavailable
from registry.backoff import Outage
from registry.editions import Draft, Edition, EditionConflict

logger = logging.getLogger(__name__)

REREAD_S = 1.0

Use = Callable[[Settings], None]
"""Takes settings over at once; must not fail: they have been checked."""


class Steering:
    """Owns what is in force; the parts of the router are told."""

    def __init__(self, registry: Registry, users: Sequence[Use]) -> None:
        self._registry = registry
        self._users = users
        self._applied: Edition | None = None
        self._refused_version = 0
        self.changed = asyncio.Event()
        """Set to look at once."""

    @property
    def version(self) -> int:
        """In force; 0: none was ever put."""
        return 0 if self._applied is None else self._applied.version

    async def run(self) -> None:
        """Follow until cancelled; while the store is away the last edition holds."""
        outage = Outage("settings")
        while True:
            self.changed.clear()
            try:
                await self.refresh()
            except RegistryUnavailable as error:
                await wait_at_most(self.changed, outage.failed(error))
                continue
            outage.ended()
            await wait_at_most(self.changed, REREAD_S)

    async def refresh(self) -> None:
        """Apply the newest edition, if it is new. Raises RegistryUnavailable."""
        version = await self._registry.settings_version()
        if not version and self.version:
            await self._restore()
        elif version not in (self.version, self._refused_version):
            self._apply(await self._registry.editions())

    def _apply(self, editions: Sequence[Edition]) -> None:
        if not editions:
            return
        newest = editions[-1]
        try:
            settings = parse_settings(newest.text, f"settings version {newest.version}")
        except ConfigError as error:
            # Written by another version of this program: what holds stays.
            logger.warning("settings refused, version %d holds: %s", self.version, error)
            self._refused_version = newest.version
            return
        for use in self._users:
            use(settings)
        self._applied = newest
        logger.info("settings in force version=%d author=%r", newest.version, newest.author)

    async def _restore(self) -> None:
        """The store lost its memory: it is told again what holds here."""
        assert self._applied is not None, "a version above 0 was applied"
        draft = Draft(
            text=self._applied.text,
            author=self._applied.author,
            restores=self._applied.version,
        )
        try:
            version = await self._registry.put_settings(draft, expected_version=0)
        except EditionConflict:
            return  # another router was faster
        logger.warning("settings version %d put again as %d", self.version, version)
        self._apply(await self._registry.editions())


def use_log_level(settings: Settings) -> None:
    """Of this process."""
    if settings.log_level:
        logging.getLogger().setLevel(settings.log_level)
