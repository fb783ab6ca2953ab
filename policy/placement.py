"""Which instance serves a phase: filter → score → pick, over columns, without IO or state."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from core.errors import NoInstance, Saturated
from core.limits import DEFAULT_MAX_QUEUED
from core.member import Role

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

POLICIES = ("least_loaded", "round_robin", "random")


class Phase(IntEnum):
    """What an instance is wanted for."""

    PREFILL = 0
    DECODE = 1


ROLE_CODES: Mapping[Role, int] = {Role.PREFILL: 0, Role.DECODE: 1, Role.MIXED: 2, Role.ROUTER: 3}
_OWN_ROLES: Mapping[Phase, tuple[int, ...]] = {Phase.PREFILL: (0, 2), Phase.DECODE: (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A snapshot of the instances: one entry of every column each."""

    role: Ints
    """See ROLE_CODES."""
    fingerprint: Ints
    """Equal numbers for equal fingerprints."""
    alive: Bools
    draining: Bools
    num_prefilling: Ints
    num_pending_prompt_tokens: Ints
    num_incoming: Ints
    num_decoding: Ints
    num_free_blocks: Ints
    num_blocks: Ints
    block_size: Ints

    @property
    def num_instances(self) -> int:
        """Rows."""
        return len(self.role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is to be placed."""

    phase: Phase
    num_tokens: int
    """Of context at most: it must fit into one instance."""
    fingerprint: int | None = None
    """None before anything of the request was placed."""
    avoid: frozenset[int] = field(default_factory=frozenset)
    """Rows that failed this request."""
    prefer: int | None = None
    """The row that has, or will soon have, the prompt's KV for another choice of the request."""


@dataclass(frozen=True, slots=True)
class PickState:
    """What the next pick depends on beside the snapshot; the caller keeps it."""

    seed: int = 0
    num_picks: int = 0

    def next(self) -> "PickState":
        """After one pick."""
        return PickState(self.seed, self.num_picks + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One placement, and why."""

    row: int
    state: PickState
    """For the next pick."""
    reasons: tuple[str, ...]
    """For the log: how many were left after each filter, and the winner's score."""


def place(table: Table, need: Need, policy: str, state: PickState) -> Decision:
    """Pick an instance.

    Raises:
        NoInstance: none is alive, takes work, is compatible and is not avoided.
        Saturated: some are, but each has its queue full or is too small.
    """
    able = able_rows(table, need)
    reasons = [f"{able.sum()} of {table.num_instances} able"]
    if not able.any():
        raise NoInstance(f"{need.phase.name.lower()}: {_why_none(table, need)}")
    roomy = able & roomy_rows(table, need)
    if not roomy.any():
        raise Saturated(
            f"{need.phase.name.lower()}: {able.sum()} instances, all with"
            f" {DEFAULT_MAX_QUEUED} requests waiting or too small for {need.num_tokens} tokens"
        )
    own = roomy & np.isin(table.role, _OWN_ROLES[need.phase])
    # Every instance can do both phases; another role serves rather than nobody.
    chosen = own if own.any() else roomy
    reasons.append(f"{chosen.sum()} {'of the role' if own.any() else 'of another role'}")
    scores = np.where(chosen, score(table, need.phase), np.inf)
    row, why = _pick(scores, chosen, policy, state), policy
    if need.prefer is not None and chosen[need.prefer]:
        # While its queue has room: waiting there costs less than computing the prompt twice.
        row, why = need.prefer, "preferred"
    reasons.append(f"{why}: score {scores[row]:g}")
    return Decision(row=row, state=state.next(), reasons=tuple(reasons))


def able_rows(table: Table, need: Need) -> Bools:
    """Alive, takes work, compatible, not avoided."""
    able: Bools = table.alive & ~table.draining & (table.role != ROLE_CODES[Role.ROUTER])
    if need.fingerprint is not None:
        able = able & (table.fingerprint == need.fingerprint)
    if need.avoid:
        able = able & ~np.isin(np.arange(table.num_instances), list(need.avoid))
    return able


def roomy_rows(table: Table, need: Need) -> Bools:
    """Large enough for the request alone, and with room in the queue of its phase."""
    waiting = table.num_prefilling if need.phase is Phase.PREFILL else table.num_incoming
    roomy: Bools = waiting < DEFAULT_MAX_QUEUED
    roomy &= table.num_blocks * table.block_size >= need.num_tokens
    return roomy


def score(table: Table, phase: Phase) -> Floats:
    """Load as the phase feels it; the least is best.

    Prefill waits behind prompt tokens. Decode shares its steps with all that run or will, and
    the share of blocks in use (below 1) tells equals apart.
    """
    if phase is Phase.PREFILL:
        # Decoding steps alternate with prefill steps on a mixed instance: one token each.
        return (table.num_pending_prompt_tokens + table.num_decoding).astype(np.float64)
    used = 1.0 - table.num_free_blocks / np.maximum(table.num_blocks, 1)
    return table.num_decoding + table.num_incoming + 0.999 * used


def _pick(scores: Floats, chosen: Bools, policy: str, state: PickState) -> int:
    rows = np.flatnonzero(chosen)
    if policy == "round_robin":
        return int(rows[state.num_picks % len(rows)])
    if policy == "random":
        rng = np.random.default_rng((state.seed, state.num_picks))
        return int(rows[rng.integers(len(rows))])
    # Equals take turns: an idle pool must not send everything to its first instance.
    best = np.flatnonzero(scores == scores[rows].min())
    return int(best[state.num_picks % len(best)])


def _why_none(table: Table, need: Need) -> str:
    num_alive = int(table.alive.sum())
    if not num_alive:
        return f"none of {table.num_instances} known instances is alive"
    return (
        f"of {table.num_instances} known instances {num_alive} are alive,"
        f" {int((table.alive & table.draining).sum())} of them drain,"
        f" {len(need.avoid)} failed this request"
    )
