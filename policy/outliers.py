"""Who is left alone for a while because it fails, or is slow, where its peers are not.

As Envoy's outlier detection does: failures in a row, or a share of many, eject for a time that
grows with every ejection and is forgiven as the ejected one behaves; and never so many of a pool
that the rest could not carry it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from policy.table import Bools, Phase, Table

N = TypeVar("N")

BASE_S = 1.0
"""The first ejection; the n-th lasts n times as long."""
MAX_EJECTED_S = 30.0
FORGIVE_S = 10.0
"""Of not being ejected, for each ejection that is forgotten."""
WINDOW_S = 10.0
"""Shares are of what happened since it began, at most."""
MIN_EVENTS = 10
"""A share of fewer says nothing."""
MAX_FAILURE_SHARE = 0.5
SLOW_FACTOR = 4.0
"""Times the median of its peers, each relative to what it had to do. Policies that look at speed
avoid a slow one in proportion; this is for what is broken."""
NUM_PEERS_TO_BE_SLOW = 2
"""With one, nobody can say which of the two is the odd one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is borne."""

    num_in_a_row: int


INSTANCE = Limits(3)
PAIR = Limits(1)
"""A handoff that stalls has cost seconds already, and other pairs are as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one instance, or of one pair."""

    num_in_a_row: int = 0
    """Failures since the last success."""
    num_events: int = 0
    num_failures: int = 0
    """Of them."""
    window_began_at_s: float = -math.inf
    num_ejections: int = 0
    """Not forgiven when the last one began."""
    ejected_until_s: float = -math.inf

    def is_ejected(self, now_s: float) -> bool:
        """Whether it is to be left alone."""
        return now_s < self.ejected_until_s

    def num_unforgiven(self, now_s: float) -> int:
        """Ejections that still count."""
        if not self.num_ejections or self.is_ejected(now_s):
            return self.num_ejections
        num_forgiven = int((now_s - self.ejected_until_s) / FORGIVE_S)
        return max(0, self.num_ejections - num_forgiven)

    def ejected(self, now_s: float) -> "Record":
        """Left alone from now on, once more; what it did before is settled."""
        num = self.num_unforgiven(now_s) + 1
        until_s = now_s + min(BASE_S * num, MAX_EJECTED_S)
        return Record(num_ejections=num, ejected_until_s=until_s)

    def after(self, now_s: float, limits: Limits, *, ok: bool) -> "Record":
        """With one more success or failure."""
        if self.is_ejected(now_s):
            return self  # work of before: it has been judged
        is_new_window = now_s - self.window_began_at_s >= WINDOW_S
        grown = replace(
            self,
            num_in_a_row=0 if ok else self.num_in_a_row + 1,
            num_events=1 + (0 if is_new_window else self.num_events),
            num_failures=(not ok) + (0 if is_new_window else self.num_failures),
            window_began_at_s=now_s if is_new_window else self.window_began_at_s,
        )
        fails_often = (
            grown.num_events >= MIN_EVENTS
            and grown.num_failures > MAX_FAILURE_SHARE * grown.num_events
        )
        if not ok and (grown.num_in_a_row >= limits.num_in_a_row or fails_often):
            return grown.ejected(now_s)
        return grown


def with_bad_pairs(pairs: Iterable[tuple[N, N]]) -> frozenset[N]:
    """Who is in two or more bad pairs: then it is not the line between the two that is bad."""
    partners: dict[N, set[N]] = {}
    for one, other in pairs:
        partners.setdefault(one, set()).add(other)
        partners.setdefault(other, set()).add(one)
    return frozenset(name for name, others in partners.items() if len(others) > 1)


def honoured(table: Table, until_s: Mapping[int, float]) -> frozenset[int]:
    """Of the rows that deserve ejection, those that get it: half of each pool at most, the worst
    first. A pool is all of one role and fingerprint that could take work; so its last one, and the
    only other of two, stay."""
    usable = table.alive & ~table.draining
    pools: dict[tuple[int, int], list[int]] = {}
    for row in until_s:
        if row < len(usable) and usable[row]:
            pools.setdefault((int(table.role[row]), int(table.fingerprint[row])), []).append(row)
    found = set[int]()
    for (role, fingerprint), rows in pools.items():
        size = np.count_nonzero(usable & in_pool(table, role, fingerprint))
        worst_first = sorted(rows, key=lambda row: (-until_s[row], row))
        found.update(worst_first[: int(size) // 2])
    return frozenset(found)


def in_pool(table: Table, role: int, fingerprint: int) -> Bools:
    """Who is of this role and fingerprint."""
    found: Bools = (table.role == role) & (table.fingerprint == fingerprint)
    return found


def slow_rows(table: Table, phase: Phase) -> frozenset[int]:
    """Who takes far longer than its peers for the same work."""
    scales = table.prefill_scale if phase is Phase.PREFILL else table.decode_scale
    usable = table.alive & ~table.draining
    slow = np.zeros(len(usable), np.bool_)
    kinds = {(int(table.role[row]), int(table.fingerprint[row])) for row in usable.nonzero()[0]}
    for role, fingerprint in kinds:
        pool = usable & in_pool(table, role, fingerprint)
        if np.count_nonzero(pool) > NUM_PEERS_TO_BE_SLOW:
            # A single odd one does not move the median of three or more.
            slow |= pool & (scales > SLOW_FACTOR * np.median(scales[pool]))
    return frozenset(slow.nonzero()[0].tolist())


def rows_without(rows: Bools, ejected: frozenset[int]) -> Bools:
    """The same less the ejected, unless that would leave nobody."""
    left = rows.copy()
    for row in ejected:
        if row < len(left):
            left[row] = False
    return left if left.any() else rows
