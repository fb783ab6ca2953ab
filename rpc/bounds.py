"""Checks of what a socket delivered: every bound broken is named, values of prompts never are."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from core.errors import FieldViolation, InvalidRequest

K = TypeVar("K")

_MAX_VIOLATIONS = 32
"""One hostile message must not become a long error; the first few say enough."""


class Bounds:
    """Collects violations of one message, then raises them together."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def refuse(self, field: str, description: str) -> None:
        """Note one violation."""
        if len(self._violations) < _MAX_VIOLATIONS:
            self._violations.append(FieldViolation(field, description))

    def number(self, field: str, value: float, low: float, high: float) -> None:
        """`low` ≤ value ≤ `high`; NaN is neither."""
        if not low <= value <= high:
            self.refuse(field, f"must be {low} to {high}, got {value}")

    def above(self, field: str, value: float, low: float, high: float) -> None:
        """`low` < value ≤ `high`; NaN is neither."""
        if not low < value <= high:
            self.refuse(field, f"must be above {low} to {high}, got {value}")

    def count(self, field: str, items: Sequence[object], low: int, high: int) -> bool:
        """Whether there are `low` to `high` items."""
        if low <= len(items) <= high:
            return True
        self.refuse(field, f"must hold {low} to {high}, got {len(items)}")
        return False

    def token_ids(self, field: str, ids: Sequence[int], vocab_size: int) -> None:
        """Each below the vocabulary size."""
        if ids and max(ids) >= vocab_size:
            self.refuse(field, f"must be below the vocabulary size {vocab_size}")

    def text(self, field: str, value: str, pattern: re.Pattern[str]) -> None:
        """All of `value` matches; it is not repeated in the error."""
        if not pattern.fullmatch(value):
            self.refuse(field, f"must match {pattern.pattern}, got {len(value)} characters")

    def settle(self) -> None:
        """Raise InvalidRequest if anything was refused."""
        if self._violations:
            raise InvalidRequest(tuple(self._violations))


def known(field: str, numbers: Mapping[K, int], value: int) -> K:
    """The key of an enum's number. Enums are open on the wire: a newer peer may send any."""
    for key, number in numbers.items():
        if number == value:
            return key
    raise InvalidRequest((FieldViolation(field, f"unknown value {value}"),))


def seconds(bounds: Bounds, field: str, value: float, high: float) -> float:
    """A duration that a peer measured: finite and not negative."""
    if not math.isfinite(value):
        value = -1.0
    bounds.number(field, value, 0.0, high)
    return value
