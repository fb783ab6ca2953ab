"""Collects what is wrong with a question, so that all of it is told at once."""

from collections.abc import Callable
from typing import TypeVar

from core.errors import ConfigError, NoProfile

T = TypeVar("T")


class Gathered:
    """Problems of several parts that are read one after the other."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._missing: NoProfile | None = None

    def add(self, problem: str) -> None:
        """One that nobody raised."""
        self._problems.append(problem)

    def of(self, make: Callable[[], T]) -> T | None:
        """What `make` makes; None, and its problems kept, where it cannot."""
        try:
            return make()
        except ConfigError as error:
            self._problems += error.problems
        except NoProfile as error:
            self._missing = self._missing or error
        return None

    def check(self) -> None:
        """Raises ConfigError with every problem; NoProfile where nothing else is wrong."""
        if self._problems:
            raise ConfigError(tuple(dict.fromkeys(self._problems)))
        if self._missing is not None:
            raise self._missing
