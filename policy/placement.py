"""Which instance serves a phase: filter → score → pick, over columns, without IO or state."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from core.config import POLICIES
from core.errors import NoInstance, Saturated
from core.limits import DEFAULT_MAX_QUEUED
from policy.latency import LatencyModel
from policy.mixed_pool import takes
from policy.outliers import rows_without
from policy.scorers import SLO, decode_scores, pick, prefill_scores
from policy.table import (
    DECODE_ROLE,
    ROUTER_ROLE,
    Ask,
    Bools,
    Floats,
    Ints,
    Links,
    Phase,
    Table,
    Weights,
)

MAX_DRAW = 2**31
MAX_OTHERS = 3
"""Told of a decision beside its winner: enough to see by how much it won."""
_64_BITS = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """By what is judged."""

    policy: str
    """One of POLICIES."""
    model: LatencyModel
    links: Links
    weights: Weights = field(default_factory=Weights)
    max_local_prefill_tokens: int = 0
    """`slo` lets a decode instance read a prompt that it caches but for so many tokens, where that
    is predicted to be cheaper."""

    @property
    def code(self) -> int:
        """The policy's number."""
        return POLICIES.index(self.policy)


class Need(NamedTuple):
    """What is to be placed."""

    phase: Phase
    num_tokens: int
    """Of context at most: it must fit into one instance."""
    num_input_tokens: int = 1
    """To prefill."""
    hit_tokens: Ints | None = None
    """Of each row; None: nothing is known."""
    model: int | None = None
    """None: any."""
    fingerprint: int | None = None
    """None before anything of the request was placed."""
    source: int | None = None
    """The row that has, or will have, its KV."""
    avoid: frozenset[int] = frozenset()
    """Rows that failed this request."""
    ejected: frozenset[int] = frozenset()
    """Rows that failed others of late: passed over where somebody else is left."""
    prefer: int | None = None
    """The row that has, or will soon have, the prompt's KV for another choice of the request; for
    decode its source: a handoff to itself moves nothing."""

    def ask(self, num_rows: int) -> Ask:
        """As the scorers want it."""
        hits = np.zeros(num_rows, np.int64) if self.hit_tokens is None else self.hit_tokens
        source = -1 if self.source is None else self.source
        return Ask(self.num_input_tokens, self.num_tokens, hits, source)


@dataclass(frozen=True, slots=True)
class PickState:
    """What the next pick depends on beside the snapshot; the caller keeps it."""

    seed: int = 0
    num_picks: int = 0

    def next(self) -> "PickState":
        """After one pick."""
        return PickState(self.seed, self.num_picks + 1)

    def draw(self) -> int:
        """This pick's random number, below MAX_DRAW: splitmix64 (Steele et al., OOPSLA '14)."""
        z = (self.seed + (self.num_picks + 1) * 0x9E3779B97F4A7C15) & _64_BITS
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
        return (z ^ (z >> 31)) % MAX_DRAW


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One placement, and why."""

    row: int
    state: PickState
    """For the next pick."""
    reasons: tuple[str, ...]
    """For the log: how many were left after each filter, and the winner's score."""
    others: tuple[tuple[int, float], ...] = ()
    """Row and score of those that came next, best first; MAX_OTHERS at most."""


def place(table: Table, need: Need, criteria: Criteria, state: PickState) -> Decision:
    """Pick an instance.

    Raises:
        NoInstance: none is alive, takes work, is compatible and is not avoided.
        Saturated: some are, but each has its queue full or is too small.
    """
    able = able_rows(table, need)
    num_able = int(np.count_nonzero(able))
    if not num_able:
        raise NoInstance(f"{need.phase.name.lower()}: {_why_none(table, need)}")
    roomy = able & roomy_rows(table, need)
    if not roomy.any():
        raise Saturated(
            f"{need.phase.name.lower()}: {num_able} instances, all with"
            f" {DEFAULT_MAX_QUEUED} requests waiting or too small for {need.num_tokens} tokens"
        )
    own = roomy & serving_rows(table, need, criteria)
    # Every instance can do both phases; another role serves rather than nobody.
    chosen = rows_without(own if own.any() else roomy, need.ejected)
    whose = "of the role" if own.any() else "of another role"
    reasons = (f"{num_able} able", f"{np.count_nonzero(chosen)} {whose}")
    if need.prefer is not None and chosen[need.prefer]:
        # While its queue has room: waiting there costs less than computing the prompt twice.
        return Decision(row=need.prefer, state=state.next(), reasons=(*reasons, "preferred"))
    scores = np.where(chosen, score(table, need, criteria), np.inf)
    row = pick(scores, criteria.code, state.num_picks, state.draw())
    why = f"{criteria.policy}: score {scores[row]:g}"
    return Decision(
        row=row, state=state.next(), reasons=(*reasons, why), others=_others(scores, row)
    )


def _others(scores: Floats, row: int) -> tuple[tuple[int, float], ...]:
    num = MAX_OTHERS + 1
    # Sorting them all would cost as much again as the decision, of a thousand instances.
    best = np.argpartition(scores, num)[:num] if len(scores) > num else np.arange(len(scores))
    told = sorted((float(scores[other]), int(other)) for other in best if other != row)
    return tuple((other, score) for score, other in told[:MAX_OTHERS] if score < np.inf)


def able_rows(table: Table, need: Need) -> Bools:
    """Alive, takes work, compatible, not avoided."""
    able: Bools = table.alive & ~table.draining & (table.role != ROUTER_ROLE)
    if need.model is not None:
        able &= table.model == need.model
    if need.fingerprint is not None:
        able &= table.fingerprint == need.fingerprint
    for row in need.avoid:
        if row < len(able):
            able[row] = False
    return able


def roomy_rows(table: Table, need: Need) -> Bools:
    """Large enough for the request alone, and with room in the queue of its phase."""
    waiting = table.num_prefilling if need.phase is Phase.PREFILL else table.num_incoming
    roomy: Bools = waiting < DEFAULT_MAX_QUEUED
    roomy &= table.num_blocks * table.block_size >= need.num_tokens
    return roomy


def serving_rows(table: Table, need: Need, criteria: Criteria) -> Bools:
    """Who takes work of the phase: by role, as a helper, or because it has most of the prompt."""
    serving = takes(table, need.phase)
    if need.phase is Phase.PREFILL and criteria.max_local_prefill_tokens and criteria.code == SLO:
        fresh = need.num_input_tokens - need.ask(len(table.role)).hit_tokens
        is_short = fresh <= criteria.max_local_prefill_tokens
        serving |= (table.role == DECODE_ROLE) & is_short
    return serving


def score(table: Table, need: Need, criteria: Criteria) -> Floats:
    """Of every row; the least is best."""
    scores = prefill_scores if need.phase is Phase.PREFILL else decode_scores
    return scores(
        criteria.code,
        criteria.model,
        criteria.links,
        criteria.weights,
        table,
        need.ask(len(table.role)),
    )


def _why_none(table: Table, need: Need) -> str:
    num_known = int(np.count_nonzero(table.num_blocks))
    num_alive = int(np.count_nonzero(table.alive))
    if not num_alive:
        return f"none of {num_known} known instances is alive"
    return (
        f"of {num_known} known instances {num_alive} are alive,"
        f" {int(np.count_nonzero(table.alive & table.draining))} of them drain,"
        f" {len(need.avoid)} failed this request"
    )
