"""Who could serve a request: counted, so that policies are asked only where there is a choice."""

from typing import Any

import numpy as np

from planner.sim.heap import NONE
from planner.sim.prefix import cached_tokens
from planner.sim.state import ANY_SERVES, Sim
from policy.scorers import decode_load, prefill_load
from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE, Ask, Phase, Table


def candidates(sim: Sim, r: int, phase: int) -> tuple[int, int]:
    """How many could serve a phase, 2 standing for more, and the first of them. Those of the phase
    serve it; where there is none, as in `policy.placement`, all that are able."""
    num_able, able, num, serving = 0, NONE, 0, NONE
    for i in range(len(sim.lanes)):
        if not _is_able(sim, i, r):
            continue
        num_able += 1
        able = i if num_able == 1 else able
        if _serves(sim, i, phase):
            num += 1
            serving = i if num == 1 else serving
            if num > 1:
                break
    sim.counters[ANY_SERVES] = num > 0
    return (num, serving) if num else (num_able, able)


def pass_over(sim: Sim, r: int, phase: int) -> None:
    """Nobody but those that `candidates` has just counted is chosen, whatever its score."""
    for i in range(len(sim.lanes)):
        if not _is_candidate(sim, i, r, phase):
            sim.scores[i] = np.inf


def score_loads(sim: Sim, r: int, phase: int) -> None:
    """By a policy that looks at one instance at a time: tables of numbers need no arrays."""
    for i in range(len(sim.lanes)):
        if _is_candidate(sim, i, r, phase):
            sim.scores[i] = _load(sim, i, r, phase)
        else:
            sim.scores[i] = np.inf


def _load(sim: Sim, i: int, r: int, phase: int) -> Any:  # noqa: ANN401 - a number, not a column
    rules, request = sim.rules, sim.requests[r]
    hits: Any = cached_tokens(sim, i, r) if rules.asks_for_hits else 0
    size = request.prompt + request.emitted
    ask = Ask(size, request.prompt + request.output, hits, request.prefill_by)
    if phase == Phase.PREFILL:
        return prefill_load(rules.policy, _row(sim.table, i), ask)
    return decode_load(rules.policy, _row(sim.table, i), ask)


def _is_candidate(sim: Sim, i: int, r: int, phase: int) -> bool:
    """Of those that `candidates` has just counted."""
    return _is_able(sim, i, r) and (sim.counters[ANY_SERVES] == 0 or _serves(sim, i, phase))


def _is_able(sim: Sim, i: int, r: int) -> bool:
    """Alive, and large enough for the request alone."""
    request = sim.requests[r]
    need = request.prompt + request.output - 1
    return bool(sim.table.alive[i] and sim.table.num_blocks[i] >= need)


def _serves(sim: Sim, i: int, phase: int) -> bool:
    """By its role: `policy.mixed_pool.takes`, of one row where nobody helps."""
    own = PREFILL_ROLE if phase == Phase.PREFILL else DECODE_ROLE
    return bool(sim.table.role[i] == own or sim.table.role[i] == MIXED_ROLE)


def _row(table: Table, i: int) -> Table:
    """One instance as policies see it: numbers instead of columns."""
    return Table(
        table.role[i],
        table.model[i],
        table.fingerprint[i],
        table.host[i],
        table.alive[i],
        table.draining[i],
        table.helps[i],
        table.num_prefilling[i],
        table.num_pending_prompt_tokens[i],
        table.num_incoming[i],
        table.num_decoding[i],
        table.num_context_tokens[i],
        table.num_free_blocks[i],
        table.num_blocks[i],
        table.block_size[i],
        table.prefill_scale[i],
        table.decode_scale[i],
    )
