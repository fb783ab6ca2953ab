"""What this router sees of the cluster: loads, caches and speeds, as its links tell."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.clock import Clock
from core.load import Load
from core.member import Member
from policy.latency import LatencyModel
from policy.table import Phase
from router.fleet import Fleet
from router.observed import Observed
from router.prefix_index import PrefixIndex

EXPECTED_S = 0.05
"""A report that comes so soon after a placement may have been made before it arrived there."""


class View:
    """One per router; placement reads it."""

    def __init__(self, model: LatencyModel, clock: Clock) -> None:
        self.fleet = Fleet()
        self.index = PrefixIndex()
        self.observed = Observed(self.fleet, model)
        self.clock = clock

    def join(self, member: Member) -> "Sight":
        """An instance, or its next incarnation."""
        row = self.fleet.join(member)
        self.index.join(row, num_blocks=member.num_blocks, block_size=member.block_size)
        return Sight(self, row, member)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What was placed, until reports count it."""

    until_s: float
    phase: Phase
    num_tokens: int


class Sight:
    """One instance in the view; its link writes it."""

    def __init__(self, view: View, row: int, member: Member) -> None:
        self.row = row
        self.load = Load(num_blocks=member.num_blocks, num_free_blocks=member.num_blocks)
        """As last reported."""
        self.heard_at_s = -math.inf
        """When that was."""
        self._view = view
        self._expected: deque[_Expected] = deque()
        self._has_left = False
        """Then its row may be another's: what a link says as it ends is not shown."""

    @property
    def clock(self) -> Clock:
        """On which its moments are."""
        return self._view.clock

    def describe(self, member: Member) -> None:
        """It says something new of itself."""
        self._view.fleet.describe(self.row, member)

    def turn(self, *, alive: bool) -> None:
        """Whether it can be used."""
        if not self._has_left:
            self._view.fleet.turn(self.row, alive=alive)

    def report(self, load: Load, num_answers: int) -> None:
        """How busy it is; with it came tokens of so many answers, if any."""
        self.load, now_s = load, self._view.clock.now_s()
        self.heard_at_s = now_s
        if self._has_left:
            return
        while self._expected and self._expected[0].until_s <= now_s:
            self._expected.popleft()
        self._show()
        if num_answers:
            batch = max(num_answers, load.num_decoding)
            self._view.observed.stepped(self.row, batch, load.num_context_tokens, now_s)

    def expect(self, phase: Phase, num_tokens: int) -> None:
        """Count what was just placed.

        Without this all requests between two reports would go to the same instance.
        """
        until_s = self._view.clock.now_s() + EXPECTED_S
        expected = _Expected(until_s, phase, num_tokens)
        self._expected.append(expected)
        self._add(expected)

    def cached(self, *, is_snapshot: bool, stored: Iterable[int], removed: Iterable[int]) -> None:
        """News of its prefix cache."""
        if not self._has_left:
            self._view.index.take(self.row, is_snapshot=is_snapshot, stored=stored, removed=removed)

    def is_mute(self) -> None:
        """It tells nothing of its cache any more."""
        if not self._has_left:
            self._view.index.clear(self.row)

    def leave(self) -> None:
        """The instance is gone."""
        self._has_left = True
        self._view.observed.forget(self.row)
        self._view.index.leave(self.row)
        self._view.fleet.leave(self.row)

    def _show(self) -> None:
        self._view.fleet.report(self.row, self.load)
        for expected in self._expected:
            self._add(expected)

    def _add(self, expected: _Expected) -> None:
        table, row = self._view.fleet.table, self.row
        if expected.phase is Phase.PREFILL:
            table.num_prefilling[row] += 1
            table.num_pending_prompt_tokens[row] += expected.num_tokens
        else:
            table.num_incoming[row] += 1
